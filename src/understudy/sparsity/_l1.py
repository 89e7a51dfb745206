"""The weight of an L1 penalty where none is asked for."""


def usual_l1(d_out: int) -> float:
    """5 / sqrt(d), the published weight (Anthropic, April 2024 update, in our units), and 0.1 below d = 2500.

    It is there that 5 / sqrt(d) grows beyond what leaves a code: at 0.12 runs of 200,000 places kept 28, 26 and 17
    latents on at widths of 64, 128 and 192 (ReLU; Gated 21, 15 and 15), at 0.25 and more few or none.
    """
    return min(0.1, 5 * d_out**-0.5)
