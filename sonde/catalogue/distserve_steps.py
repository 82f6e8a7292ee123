"""Step times of an engine on A100-80G: coefficients of DistServe's repository (LLMServe/DistServe, Apache-2.0)."""

from __future__ import annotations

Three = tuple[float, float, float]

#: (model, tensor-parallel ranks) -> ms: prompts a + b·Σl + c·Σl²; decode steps a + b·Σcontext + c·batch, below a batch
#: of 95 and from there on
MEASURED: dict[tuple[str, int], tuple[Three, Three, Three]] = {
    ("opt-13b", 1): ((18.1, 0.1019, 7.12e-6), (19.93, 6.27e-4, 0.0385), (7.17, 5.80e-4, 0.158)),
    ("opt-13b", 2): ((14.74, 0.0686, 2.45e-6), (13.29, 3.41e-4, 0.063), (10.64, 3.12e-4, 0.0856)),
    ("opt-13b", 4): ((12.06, 0.0381, 5.23e-7), (10.26, 1.88e-4, 0.0327), (10.48, 1.71e-4, 0.0457)),
    ("opt-66b", 2): ((43.06, 0.2742, 2.25e-5), (48.29, 9.42e-4, 0.1276), (28.73, 4.74e-4, 0.296)),
    ("opt-66b", 4): ((29.44, 0.1514, 8.32e-6), (30.76, 4.52e-4, 0.0633), (27.47, 4.05e-4, 0.125)),
    ("opt-66b", 8): ((25.49, 0.1066, 3.39e-6), (23.16, 2.27e-4, 0.048), (21.72, 3.76e-4, 0.0898)),
}
#: batch from which decode steps follow the second line
LARGE = 95
#: (model, ranks) -> tokens of KV cache that the engine had
KV_TOKENS: dict[tuple[str, int], int] = {
    ("opt-13b", 1): 66_144, ("opt-13b", 2): 163_008, ("opt-13b", 4): 356_736, ("opt-66b", 2): 11_600,
}  # fmt: skip
