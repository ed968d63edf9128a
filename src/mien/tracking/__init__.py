"""From a video to the motion of each person in it."""
