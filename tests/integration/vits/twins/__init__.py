"""Models of libraries that do not import today, written anew: their names and structure, our code.

A family knows a class by the end of its qualified name, so these stand where the library's would. PASSL
needs ``paddle.fluid``, PaddleNLP and ppdiffusers an old huggingface_hub. Initial values do not matter: tests
set all.
"""
