"""What the routers of a model did, in a bounded number of figures.

L layers with experts, E experts
"""

import torch
from torch import Tensor


def summarise(router: dict[str, Tensor]) -> dict[str, float]:
    """Metrics `moe/…` from the statistics of one call of the model; empty without experts.

    `max_over_mean` is the busiest expert's load over the mean, the worst layer's; `dead` counts
    experts that got no token.
    """
    if not router:
        return {}
    load_LE = router["load_E"]
    scalars = {f"moe/{name}": t.mean() for name, t in router.items() if name != "load_E"}
    scalars["moe/max_over_mean"] = load_LE.max() * load_LE.shape[1]
    scalars["moe/dead"] = (load_LE == 0).sum()
    # one transfer for all of them
    values = torch.stack([value.float() for value in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))
