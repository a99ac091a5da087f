"""What each parameter is for, declared where it is made.

Weight decay, per-role learning rates, parameter counts and FLOPs read the role; nobody matches
names.
"""

from typing import Literal

from torch import nn

Role = Literal["embedding", "matrix", "expert", "router", "head", "gain", "bias"]

#: Roles that a token is multiplied with, as a matrix.
PRODUCTS = ("matrix", "expert", "router", "head")


def declare(parameter: nn.Parameter, role: Role, active: float = 1.0) -> nn.Parameter:
    """Mark `parameter` with its role.

    Args:
        active: the share of it that one token uses (top_k / n_experts for expert matrices)
    """
    parameter.role = role  # type: ignore[attr-defined]
    parameter.active = active  # type: ignore[attr-defined]
    return parameter


def role_of(parameter: nn.Parameter) -> Role:
    """The declared role; a parameter without one is an error of its author, named by shape."""
    role = getattr(parameter, "role", None)
    if role is None:
        shape = tuple(parameter.shape)
        raise TypeError(f"a parameter of shape {shape} declares no role (llm.layers.roles.declare)")
    return role
