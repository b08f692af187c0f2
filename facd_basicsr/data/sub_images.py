"""Overlapping crops of large images: they decode faster than the whole when training needs a patch."""


def sub_images(size: int, crop: int, step: int) -> list[tuple[int, int]]:
    """Start and end along one axis of overlapping crops that cover it, the last one flush with the end."""
    if size <= crop:
        return [(0, size)]
    starts = list(range(0, size - crop + 1, step))
    if starts[-1] != size - crop:
        starts.append(size - crop)
    return [(start, start + crop) for start in starts]


def boxes(height: int, width: int, crop: int, step: int) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right of an image's sub-images, row by row, which is how BasicSR numbers them."""
    return [
        (top, bottom, left, right)
        for top, bottom in sub_images(height, crop, step)
        for left, right in sub_images(width, crop, step)
    ]
