"""Model families: one small file per library, none of which imports it or its framework."""
