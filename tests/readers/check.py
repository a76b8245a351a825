#!/usr/bin/env python3
"""What attrflow says of a run, read by programs that are not ours.

    python tests/readers/check.py ATTRFLOW MANIFEST

Writes a statement, a crate and a signature into a temporary folder, and has them read: the statement by in-toto's own library,
the crate by ro-crate-py, runcrate and the validator of the RO-Crate profiles, the signature by minisign, where it is installed.
Hashes are made again by Python's hashlib.
"""

import email.message
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import urllib.response

import requests
import rocrate
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from rocrate.rocrate import ROCrate
from rocrate_validator import services
from rocrate_validator.models import Severity, ValidationSettings

# The contexts that crates name, so that no network is needed. RO-Crate's own comes with ro-crate-py, in a later version: what
# 1.1 called otherwise is put back. Of that for runs, there is what is used.
TERMS = {
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}
SHIPPED = json.loads((pathlib.Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text())
CONTEXTS = {
    "https://w3id.org/ro/crate/1.1/context": {"@context": {**SHIPPED["@context"], **TERMS}},
    "https://w3id.org/ro/terms/workflow-run/context": {
        "@context": {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
    },
}
CONTEXTS = {address: json.dumps(context).encode() for address, context in CONTEXTS.items()}


SEVERITY = Severity.REQUIRED


class Contexts(urllib.request.HTTPSHandler):
    """Serves the contexts, and nothing else."""

    def https_open(self, request):
        headers = email.message.Message()
        headers["Content-Type"] = "application/ld+json"
        body = CONTEXTS[request.full_url]
        response = urllib.response.addinfourl(io.BytesIO(body), headers, request.full_url, 200)
        response.msg = "OK"
        return response


def send(_adapter, request, **_options):
    response = requests.Response()
    body = CONTEXTS.get(request.url)
    response.status_code = 404 if body is None else 200
    response.raw = io.BytesIO(body or b"")
    response.headers["Content-Type"] = "application/ld+json"
    response.url, response.request = request.url, request
    return response


def statement(path, manifest):
    data = json.loads(path.read_text())
    Statement.copy_from_pb(json_format.ParseDict(data, statement_pb2.Statement())).validate()
    provenance = json_format.ParseDict(data["predicate"], provenance_pb2.Provenance())
    byproduct = provenance.run_details.byproducts[0].digest["sha256"]
    assert byproduct == hashlib.sha256(manifest.read_bytes()).hexdigest(), "the statement is of another manifest"
    names = [subject["name"] for subject in data["subject"]]
    assert names and len(names) == len(set(names)), "subjects without a name of their own"
    print(f"in-toto: a statement about {len(names)} files, by {provenance.run_details.builder.id}")
    return {subject["name"]: subject["digest"] for subject in data["subject"]}


def crate(path, subjects):
    read = ROCrate(path)
    assert "ComputationalWorkflow" in read.mainEntity.type, read.mainEntity.type
    held = [entity for entity in read.data_entities if entity.id.startswith("results/")]
    assert held, "a crate without results"
    for entity in held:
        found = hashlib.sha256((path / entity.id).read_bytes()).hexdigest()
        assert found == entity["sha256"] == subjects[entity["name"]]["sha256"], entity.id
    print(f"ro-crate-py: {len(held)} files of results, with the hashes that the statement has too")
    report = subprocess.run(
        [pathlib.Path(sys.executable).with_name("runcrate"), "report", path], capture_output=True, text=True, check=True
    ).stdout
    actions = [line for line in report.splitlines() if line.startswith("action: ")]
    assert len(actions) > 1, report
    print(f"runcrate: {len(actions)} actions")
    for profile in ("workflow-run-crate", "process-run-crate", "workflow-ro-crate"):
        settings = ValidationSettings(
            rocrate_uri=str(path),
            profile_identifier=profile,
            requirement_severity=SEVERITY,
            skip_availability_check=True,
            no_cache=True,
        )
        result = services.validate(settings)
        issues = [f"{issue.check.identifier}: {issue.message} ({issue.violatingEntity})" for issue in result.get_issues(SEVERITY)]
        assert not issues, "\n".join([profile, *issues])
        print(f"rocrate-validator: conforms to {profile}")


def signature(program, folder, manifest):
    minisign = shutil.which("minisign")
    if minisign is None:
        print("minisign is not here: its check is left out")
        return
    key, public = folder / "key", folder / "key.pub"
    subprocess.run([minisign, "-G", "-W", "-p", public, "-s", key], check=True, capture_output=True)
    copy = folder / "manifest.json"
    copy.write_bytes(manifest.read_bytes())
    cache = manifest.parents[2]
    subprocess.run([program, "audit", copy, "--cache", cache, "--sign", key], check=True, capture_output=True)
    subprocess.run([minisign, "-V", "-p", public, "-m", copy], check=True, capture_output=True)
    copy.write_bytes(copy.read_bytes() + b" ")
    assert subprocess.run([minisign, "-V", "-p", public, "-m", copy], capture_output=True).returncode != 0
    print("minisign: takes our signature by its own key, and of no other bytes")


def main():
    urllib.request.install_opener(urllib.request.build_opener(Contexts()))
    requests.adapters.HTTPAdapter.send = send
    program, manifest = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="attrflow-readers-"))
    try:
        made = [folder / "statement.json", folder / "crate"]
        subprocess.run([program, "attest", manifest, "--in-toto", made[0], "--ro-crate", made[1]], check=True, capture_output=True)
        crate(made[1], statement(made[0], manifest))
        signature(program, folder, manifest)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
