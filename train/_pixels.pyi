from train.decode import Pixels

def recolour(
    pixels: Pixels,
    order: tuple[int, ...],
    brightness: float,
    contrast: float,
    saturation: float,
    hue: int,
    gain: float,
    offset: float,
) -> None: ...
