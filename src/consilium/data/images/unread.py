"""What files are that are no image that is read, by how they start, and what to do with them."""

from __future__ import annotations

from consilium.core.errors import ImageError

_CONVERT = "convert it to PNG or TIFF"
# How each kind starts; what it is; what to do.
_STARTS = (
    (b"8BPS", "a Photoshop file (PSD)", _CONVERT),
    (b"%PDF", "a PDF file", "export its pages or figures as PNG"),
    (b"%!PS", "a PostScript file", _CONVERT),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)", _CONVERT),
    (b"SIMPLE  =", "a FITS file", "convert it to TIFF of 16 bits or 32-bit floats"),
    (
        b"NRRD000",
        "an NRRD volume",
        "convert it to NIfTI (SimpleITK: sitk.WriteImage(sitk.ReadImage(...), 'it.nii.gz'))",
    ),
    (b"ObjectType", "a MetaImage header (.mha, .mhd)", "convert it to NIfTI (with SimpleITK)"),
    (b"NDims", "a MetaImage header (.mha, .mhd)", "convert it to NIfTI (with SimpleITK)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its images as PNG or TIFF"),
    (b"CDF\x01", "a MINC or NetCDF file", "convert it to NIfTI (mnc2nii)"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "save it as PNG or TIFF"),
    (b"MATLAB", "a MATLAB file", "save its images as PNG or TIFF"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "a gzip file that holds no NIfTI volume or is damaged", "copy it again, or unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\0\0\1\0", "an icon (ICO)", _CONVERT),
    (b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (b"\xff\xd8\xff\xf7", "a JPEG-LS image", _CONVERT),
    (b"II\xbc", "a JPEG XR image", _CONVERT),
    (b"qoif", "a QOI image", _CONVERT),
    (b"gimp xcf", "a GIMP file (XCF)", _CONVERT),
    (b"v/1\x01", "an OpenEXR image", "convert it to TIFF of 32-bit floats"),
    (b"#?RADIANCE", "a Radiance image (HDR)", "convert it to TIFF of 32-bit floats"),
    (b"\x01\xda", "an SGI image", _CONVERT),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the image itself", "fetch the images (git lfs pull)"),
    (b"<svg", "a vector drawing (SVG)", _CONVERT),
    (b"<?xml", "an XML file", "give the images themselves"),
    (b"<!doctype html", "a web page, perhaps the error page of a download", "download the image again"),
    (b"<html", "a web page, perhaps the error page of a download", "download the image again"),
    (b"{", "a JSON text", "give the images themselves"),
)
_BRANDS = {b"avif": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image"}
_ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")


def no_image(data: bytes, name: str, known: str) -> ImageError:
    """The error of bytes that are no image of a ``known`` kind."""
    head = data[:64].lstrip(b" \t\r\n\xef\xbb\xbf")
    found = next(((kind, advice) for start, kind, advice in _STARTS if head.lower().startswith(start.lower())), None)
    if data[4:8] == b"ftyp":
        found = (_BRANDS.get(data[8:12], "a video (MP4 and kin)"), "convert it, or single frames of it, to PNG or TIFF")
    elif data[:4] in _ANALYZE and len(data) >= 348:
        found = ("an Analyze 7.5 header (.hdr)", "convert it and its .img to NIfTI (.nii.gz; nibabel does)")
    elif data and not any(data[:4096]):
        found = ("a file of zeros, as a broken copy leaves them", "copy it again")
    if found is not None:
        return ImageError(
            f"{name} is {found[0]}, which is no image of a known kind ({known}); {found[1]}, or leave the row out."
        )
    return ImageError(
        f"{name} is no image of a known kind ({known}), or cut short: it starts with {data[:16]!r}; convert it, or "
        "leave the row out."
    )
