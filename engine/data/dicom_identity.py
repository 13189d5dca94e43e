"""Which kinds of identifying elements a DICOM header holds, so that a reader learns of them without seeing them."""

from collections.abc import Iterator

import pydicom
from pydicom.datadict import dictionary_VR, keyword_for_tag

from engine.data.dicom import items_of, parse_header, refusals
from engine.data.images import is_dicom
from engine.errors import ImageError

# Kinds of elements that PS3.15 table E.1-1 removes, by words for the reader.
_KINDS = {
    "patient name": "PatientName OtherPatientNames PatientBirthName PatientMotherBirthName",
    "patient ID": "PatientID",
    "other IDs": "OtherPatientIDs OtherPatientIDsSequence IssuerOfPatientID AdmissionID StudyID MedicalRecordLocator",
    "birth date": "PatientBirthDate PatientBirthTime",
    "sex": "PatientSex",
    "age": "PatientAge",
    "address or telephone": "PatientAddress PatientTelephoneNumbers CountryOfResidence RegionOfResidence",
    "other details": "PatientSize PatientWeight EthnicGroup Occupation PatientReligiousPreference MilitaryRank",
    "accession number": "AccessionNumber",
    "study, series or image UID": "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID",
    "institution": "InstitutionName InstitutionAddress InstitutionalDepartmentName ResponsibleOrganization",
    "device": "DeviceSerialNumber StationName DetectorID GantryID PlateID DeviceUID PerformedStationName",
    "descriptions or comments": "StudyDescription SeriesDescription ImageComments PatientComments ProtocolName "
    "AdditionalPatientHistory AdmittingDiagnosesDescription RequestedProcedureDescription DerivationDescription "
    "PerformedProcedureStepDescription AcquisitionComments StudyComments FrameComments ReasonForStudy",
}
_KIND_OF = {keyword: kind for kind, keywords in _KINDS.items() for keyword in keywords.split()}
_KIND_OF_VR = {"PN": "physicians or operators", **dict.fromkeys(("DA", "DT", "TM"), "dates and times")}
_WORDS = (*_KINDS, "physicians or operators", "dates and times", "private elements", "overlays")


def identifying_fields(content: bytes) -> tuple[str, ...]:
    """Which kinds of identifying elements the header holds, in plain words and never their values; () on damage."""
    if not is_dicom(content):
        return ()
    try:
        with refusals():
            dataset = parse_header(content, None, pixels=False)
            found = set(_kinds_in(dataset))
            burned = str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES"
    except ImageError:
        return ()
    return (*(kind for kind in _WORDS if kind in found), *(("text burned into the picture",) if burned else ()))


def _kinds_in(dataset: pydicom.Dataset) -> Iterator[str]:
    for tag in dataset.keys():  # noqa: SIM118 - values would be converted, and may not convert
        raw = dataset.get_item(tag)
        if not raw.value or (isinstance(raw.value, bytes) and not raw.value.strip(b" \0")):
            continue
        keyword = keyword_for_tag(tag)
        vr = dictionary_VR(tag) if keyword else raw.VR
        if tag.is_private:
            yield "private elements"
        elif 0x6000 <= tag.group <= 0x60FF:
            yield "overlays"
        elif keyword in _KIND_OF or vr in _KIND_OF_VR:
            yield _KIND_OF.get(keyword) or _KIND_OF_VR[vr]
        elif vr == "SQ":
            for item in items_of(dataset, tag):
                yield from _kinds_in(item)
