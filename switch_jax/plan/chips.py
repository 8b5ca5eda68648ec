"""Published figures of TPU generations, by the compiler's name of the device. A device is what JAX calls one."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one device of a generation can do.

  Attributes:
    clock: cycles a second.
    peak_flops: bfloat16 FLOPs a second.
    vector_lanes: values that its vector units take in a cycle.
    link_bytes: a second, that leave a device over all links of its chip in one direction; the devices of a chip share
      them.
  """

  clock: float
  peak_flops: float
  vector_lanes: int
  link_bytes: float


def _chip(clock_mhz: float, peak_tflops: float, link_gigabytes: float, devices: int, cores: int = 1) -> Chip:
  """Takes the peak and the links of a whole chip, how many devices JAX sees in it, and their cores."""
  return Chip(clock_mhz * 1e6, peak_tflops * 1e12 / devices, cores * 1024, link_gigabytes * 1e9 / devices)


# Peaks and links are from the pages of Cloud TPU's documentation (where these give both directions, half). The clocks
# of v2 to v4 are published; of the others it is the clock at which the matrix units reach the published peak: their
# FLOPs a cycle show in the compiler's cycles for a large product (2**17 on v5e, 2**18 on v5p, 2**19 on v6e and tpu7x).
CHIPS = {
  'TPU v2': _chip(700, 46, 248, 2),
  'TPU v3': _chip(940, 123, 328, 2),
  'TPU v4': _chip(1050, 275, 300, 2),
  'TPU v5 lite': _chip(1500, 197, 200, 1),
  'TPU v5': _chip(1750, 459, 600, 1, 2),
  'TPU v6 lite': _chip(1750, 918, 400, 1),
  'TPU7x': _chip(2200, 2307, 600, 2),
}
