"""Photos in, result folders out; whole files or none."""

from mien.io.photo import Photo as Photo
from mien.io.photo import find_photos as find_photos
from mien.io.photo import read_photo as read_photo
