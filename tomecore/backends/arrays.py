"""Name arrays by their shapes, for signatures.

B is the batch, N the tokens, n some of them, C their width and D the width of a key. The names are for
readers: a type checker treats them all as :data:`Array`, and nothing is checked when the code runs.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

__all__ = ["Array", "Bias", "Index", "Mask", "Rows", "Sizes", "TokenKeys", "Tokens"]

#: an array of any library
Array = Any
#: tokens, in the dtype of the activations
Tokens = Annotated[Array, "(B, N, C)"]
#: the keys by which tokens are compared, without heads
TokenKeys = Annotated[Array, "(B, N, D)"]
#: how many original tokens each token stands for, float32
Sizes = Annotated[Array, "(B, N)"]
#: False for padding, bool
Mask = Annotated[Array, "(B, N)"]
#: numbers of tokens or slots, integers
Index = Annotated[Array, "(B, n)"]
#: what is added to the attention scores of each key, in the dtype of the activations
Bias = Annotated[Array, "(B, 1, 1, N)"]


class Rows(NamedTuple):
    """A plan as numbers of rows of the whole batch, laid end to end.

    Args:
        kept: (B * n,) int, the row of the token that each slot starts from.
        pairs: (2 * B * r,) int, the rows of the merged tokens, then those of the tokens they merge into.
        into: (B * r,) int, the rows of the slots they go to, among B * n rows.
    """

    kept: Array
    pairs: Array
    into: Array
