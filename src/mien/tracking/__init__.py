"""From a video to the motion of each person in it."""

from mien.tracking.track import Track as Track
from mien.tracking.tracker import Tracker as Tracker
from mien.tracking.tracker import track as track
