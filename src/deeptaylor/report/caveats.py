"""What each composite does and where it misleads, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caveat:
    """One composite, for a reader who does not know the theory."""

    does: str
    beware: str


_FLAT = "the first layer spreads its relevance evenly over all the pixels it looked at"
_TWO_ONE = (
    "The weights 2 and 1 are a convention. Positive and negative parts both grow from layer to layer, so that the size "
    "of one pixel's relevance means little beside its neighbours'."
)

CAVEATS = {
    "deep-taylor": Caveat(
        "Every neuron is expanded to first order at a point where it falls silent, and passes its relevance to the "
        "inputs that support it (z⁺); at the pixels that point is kept inside the range of real pixels (z^B). The last "
        "layer passes on in proportion (ε), so that classes differ at all.",
        "It shows where the network found support, less well support for what: long chains of z⁺ forget the upper "
        "layers, and maps of different classes look alike (Sixt et al. 2020). The expansion points seldom lie in the "
        "linear region of the photo itself (Sixt and Landgraf 2022). The theory wants biases that are never positive; "
        "batch norm makes large positive ones, and what they contributed is not passed on.",
    ),
    "epsilon": Caveat(
        "Every neuron passes relevance to its inputs in proportion to what they added to its sum, plus or minus; a "
        "small ε steadies the division.",
        "Very close to gradient × input in ReLU networks: sharp, class-specific and noisy. Where large terms cancel in "
        "a sum, both are shown large. Biases keep their share: look at the balance beside the maps.",
    ),
    "epsilon-plus": Caveat(
        "Convolutions pass relevance only to what supported them (z⁺), dense layers in proportion (ε).",
        "Clean maps, bought by ignoring what speaks against in the convolutions. Class differences come from the last "
        "layers alone, so two classes' maps differ in weighting more than in place. Positive biases count as support "
        "and keep their share, which can be nearly everything in a deep network with batch norm.",
    ),
    "epsilon-plus-flat": Caveat(
        f"As epsilon-plus, but {_FLAT}.",
        "Detail finer than the first layer's window is not the network's: it was spread on purpose. Maps look smoother "
        "than the network is.",
    ),
    "epsilon-alpha2-beta1": Caveat(
        "Convolutions count what supported them twice and what spoke against once; dense layers pass on in proportion.",
        _TWO_ONE,
    ),
    "epsilon-alpha2-beta1-flat": Caveat(
        f"As epsilon-alpha2-beta1, but {_FLAT}.",
        f"{_TWO_ONE} Detail finer than the first layer's window was spread on purpose.",
    ),
    "attn-lrp": Caveat(
        "Attention is taken apart: its weights (softmax, expanded at their scores) and its values get half of the "
        "relevance each, and so do the two sides of a gate; norms only scale.",
        "What softmax's expansion leaves over is booked, not shown. Where the two branches of a residual sum cancel, "
        "both are shown large; res-lrp was made for that.",
    ),
    "cp-lrp": Caveat(
        "Attention weights, gates and norms are taken as constants: relevance follows the values alone.",
        "It does not say why the network attended where it did. Queries, keys and gates get nothing by definition.",
    ),
    "res-lrp": Caveat(
        "As attn-lrp, but a residual sum favours the branch of its own sign (γ = 1), so that cancelling branches do "
        "not blow up.",
        "γ = 1 is a convention. What softmax's expansion leaves over is booked, not shown.",
    ),
    "mamba-lrp": Caveat(
        "What selects a state (step sizes, input and read-out weights) is taken as a constant; the output gate gets "
        "half.",
        "It does not say why the network kept or forgot what it did: the selection gets nothing by definition.",
    ),
    "epsilon-gamma-box": Caveat(
        "Convolutions favour what supported them by a quarter (γ = 0.25), dense layers pass on in proportion (ε), and "
        "the pixels are measured against the darkest and the brightest possible pixel (z^B).",
        "A compromise between noise and forgetting the class; the quarter is a convention, and other values give other "
        "maps. The box must be the true range of pixels.",
    ),
    "gradient-times-input": Caveat(
        "What the score would lose if a pixel's value faded a little towards zero, scaled up to all of it.",
        "Not a decomposition of this score wherever biases matter: the sum can be far from it, and the balance shows "
        "how far. Zero is mid-grey or the average colour here, not absence. Deep networks give noise.",
    ),
    "auto": Caveat(
        "The library's choice of rules for the operations it found; the table of operations below names each one.",
        "A choice is not a law: compare with another composite before concluding anything.",
    ),
}


def caveat(composite: str) -> Caveat | None:
    """What to say about a composite; None for one that is not shipped."""
    return CAVEATS.get(composite)
