"""One name and one colour per model and hospital, the same on every page."""

from engine.config import Federation

FEDERATED = "#2f6cb3"  # ink blue, light enough to be read on a dark page too
POOLED = "#7d8791"
UNKNOWN = "#9aa3ab"
UNTRAINED = "#9c6b4f"  # a random encoder, and a network from scratch
STARTED = "#7a5fb5"  # an encoder as the run began
# Okabe & Ito, Color Universal Design, in their order; without their black, which a dark page hides, and their blue,
# which would pass for the federated one. Yellow comes last, because it is faint on white.
HOSPITALS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#f0e442")
# Runs beside each other: no hospital's colour, and the first, which the others are compared with, as the federated one.
RUNS = (FEDERATED, "#b0487a", "#7a5fb5", "#3f8f8a", "#9c6b4f")


def model_colour(federation: Federation, model: str) -> str:
    if model == "global":
        return FEDERATED
    if model == "central":
        return POOLED
    return hospital_colour(federation, model.removeprefix("local/"))


def hospital_colour(federation: Federation, hospital_id: str) -> str:
    """By the hospital's place in the federation; a seventh hospital begins anew, labels keep them apart."""
    places = [hospital.id for hospital in federation.hospital]
    return HOSPITALS[places.index(hospital_id) % len(HOSPITALS)] if hospital_id in places else UNKNOWN


def model_order(federation: Federation, models: list[str]) -> list[str]:
    """Federated first, then its hospitals in their order, pooled last."""
    hospitals = [hospital.id for hospital in federation.hospital]
    order = ["global", *(f"personal/{h}" for h in hospitals), *(f"local/{h}" for h in hospitals), "central"]
    return sorted(models, key=lambda model: order.index(model) if model in order else len(order))
