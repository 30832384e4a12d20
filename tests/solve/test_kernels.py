import numba
import numpy as np

from prunesampler.solve import kernels


def test_without_a_place_to_keep_machine_code_it_compiles_all_the_same(monkeypatch):
    njit = numba.njit

    def no_cache(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", no_cache)
    double = kernels.compiled(lambda x: 2 * x)
    assert double(21) == 42


def test_random_numbers_are_those_of_splitmix64():
    # The same recurrence in Python's integers, which do not overflow.
    mask, state, expected = 2**64 - 1, 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(z ^ (z >> 31))
    found = np.array([1234567], dtype=np.uint64)
    assert [int(kernels.next_random(found)) for _ in range(3)] == expected
