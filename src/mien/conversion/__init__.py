"""From somebody's face model to one that the whole system works with, and from one topology to another.

    file ── reader ──► SourceModel ── registration of the packaged model ──► parts it lacks ──► MorphableModel

What a model has is kept as it is. What it lacks is completed by the rules of `completion`, each of which leaves a note
in the model, or is reported as absent.
"""

from mien.conversion.completion import complete as complete
from mien.conversion.registration import Registration as Registration
from mien.conversion.registration import register as register
from mien.conversion.transfer import Transfer as Transfer
from mien.conversion.transfer import transfer as transfer
