"""From somebody's face model to one that the whole system works with, and from one topology to another.

    file ── reader ──► SourceModel ── registration of the packaged model ──► parts it lacks ──► MorphableModel

What a model has is kept as it is. What it lacks is completed by the rules of `completion`, each of which leaves a note
in the model, or is reported as absent.
"""

from mien.registration.completion import complete as complete
from mien.registration.nonrigid_icp import Registration as Registration
from mien.registration.nonrigid_icp import register as register
from mien.registration.transfer import Transfer as Transfer
from mien.registration.transfer import transfer as transfer
