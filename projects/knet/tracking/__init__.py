"""Objects of a video that keep their ids: found in a frame, linked to what is remembered, written.

follower = ObjectFollower(predictor)
for number, frame in enumerate(frames, start=1):
    id_map, segments = follower(frame, number)["panoptic_seg"]
"""

from knet.tracking.follower import ObjectFollower
from knet.tracking.memory import LinkOptions, ObjectMemory
from knet.tracking.track_file import FollowedFiles, TrackFile

__all__ = ["FollowedFiles", "LinkOptions", "ObjectFollower", "ObjectMemory", "TrackFile"]
