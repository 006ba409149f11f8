"""Whole volumes through the public path, for comparisons."""

import numpy as np

from medfuse.loaders import dicom, volume

WHOLE = {"patch": [99999, 99999, 99999]}


def whole(loader, files, **options):
    """(volumes, I, J, K, C) in RAS+, centre of the grid in mm, spacing in mm, sample."""
    sample = {"dicom": dicom, "volume": volume}[loader].read(files, WHOLE | options)
    values = sample.fetch(range(len(sample)))
    return values, sample.position[0, :3], np.asarray(sample.facts["spacing_mm"]), sample


def truth(image):
    """The same of a nibabel image."""
    import nibabel

    turned = nibabel.as_closest_canonical(image)
    data = np.asanyarray(turned.dataobj)
    if data.dtype.names:
        data = np.stack([data[n] for n in data.dtype.names if n != "A"], axis=-1)
    else:
        data = (data if data.ndim == 4 else data[..., None])[..., None]
        data = np.moveaxis(data, 3, 0)
    data = data if data.ndim == 5 else data[None]
    centre = turned.affine[:3, :3] @ ((np.asarray(turned.shape[:3]) - 1) / 2) + turned.affine[:3, 3]
    return data, centre, np.sqrt((turned.affine[:3, :3] ** 2).sum(axis=0)), turned.affine
