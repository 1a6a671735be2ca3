"""Models of libraries that cannot be imported today: their names and structure, our code.

A family identifies a class by the end of its qualified name, so these have the paths of the library's. PASSL
needs ``paddle.fluid``, and PaddleNLP and ppdiffusers need an old huggingface_hub. Initial values do not
matter, because tests set all of them.
"""
