"""What each version of a Model was when it was first seen, so that no other artifact takes its name. Pure.

The API server keeps a written version as it is, but one that was removed can be written again. So a Model's status
remembers, a DeployedModel's and a job's status hold what they run, and both are asked before anything new is made.
"""

from collections.abc import Sequence

from pierhead_operator.types import Model, ModelVersion, VersionRecord

# Those in the spec, at most 64, and the rest removed ones: the status stays small beside what etcd takes.
MOST_REMEMBERED = 256
# Of those that one DeployedModel ran.
MOST_RUN = 16


def make_record(version: ModelVersion) -> VersionRecord:
    """What a version is."""
    return VersionRecord(
        name=version.name,
        artifact_uri=version.artifact_uri,
        digest=version.digest,
        allow_code=version.allow_code,
        runtime=None if version.runtime == "PyTorch" else version.runtime,
    )


def remember_versions(known: Sequence[VersionRecord], versions: Sequence[ModelVersion]) -> list[VersionRecord]:
    """What is to be remembered: each name with what it was first, of removed ones the last that were added."""
    records = {record.name: record for record in known}
    for version in versions:
        records.setdefault(version.name, make_record(version))
    present = {version.name for version in versions}
    removed = [name for name in records if name not in present]
    for name in removed[: max(0, len(records) - MOST_REMEMBERED)]:
        del records[name]
    return list(records.values())


def remember_run(known: Sequence[VersionRecord], version: ModelVersion) -> list[VersionRecord]:
    """What a DeployedModel that runs a version is to remember: each name with what it was first, this one's last."""
    others = [record for record in known if record.name != version.name]
    own = next((record for record in known if record.name == version.name), make_record(version))
    return [*others, own][-MOST_RUN:]


def find_version(model: Model, name: str) -> ModelVersion | None:
    """The version of that name or alias, if there is one; none where an alias was the name of another artifact."""
    found = next((version for version in model.spec.versions if name in version.aliases), None)
    return model.spec.version(name) or (found if found and not _explain_alias(model, found, name) else None)


def explain_versions(model: Model) -> str | None:
    """Which versions of a Model are not what they were, and the fix; None where all are."""
    told = [explain_version(model, version, ()) for version in model.spec.versions]
    told += [_explain_alias(model, version, alias) for version in model.spec.versions for alias in version.aliases]
    return "; ".join(message for message in told if message) or None


def _explain_alias(model: Model, version: ModelVersion, alias: str) -> str | None:
    """Why an alias leads to no version: it was the name of another one, and the fix; None where it was not."""
    known = next((record for record in model.status.versions if record.name == alias), None)
    if known is None or known == make_record(version).model_copy(update={"name": alias}):
        return None
    return (
        f"Model {model.name}: version {alias} was {_describe(known)}, and is now an alias of version {version.name}:"
        " take the alias away, for a version never changes"
    )


def explain_version(model: Model, version: ModelVersion, ran: Sequence[VersionRecord]) -> str | None:
    """Why a version must not be made anything of: its name was another artifact's, and the fix; None where it was not.

    `ran` is what whoever asks has run already, if anything.
    """
    known = [record for record in (*ran, *model.status.versions) if record.name == version.name]
    present = make_record(version)
    if not known or known[0] == present:
        return None
    return (
        f"Model {model.name}: version {version.name} was {_describe(known[0])} and is {_describe(present)}:"
        " a version never changes, so put back what it was, or give the other artifact a name of its own"
    )


def _describe(record: VersionRecord) -> str:
    digest = f" of {record.digest}" if record.digest else ""
    runtime = f" with runtime {record.runtime}" if record.runtime else ""
    return f"{record.artifact_uri}{digest}{runtime}{', whose code may run' if record.allow_code else ''}"
