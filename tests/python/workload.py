"""What an application in Python sees of a Workload API, by the `spiffe` package from PyPI.

    workload.py SOCKET svid            its certificate, verified by the bundles that came with it
    workload.py SOCKET hold            the same, then stays until standard input ends
    workload.py SOCKET rotations N     the serials that its stream brings, until there are N
    workload.py SOCKET bare            the answer to a call without the header

One JSON object a line. An error of the API is `{"error": CODE, "details": TEXT}`.
"""

import json
import sys
import threading

import grpc
from cryptography.hazmat.primitives import serialization
from spiffe import TrustDomain, WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc


def say(**what):
    print(json.dumps(what), flush=True)


def verified(svid, bundle):
    """Follows the chain from the leaf to a root of the bundle, each signed by the next."""
    chain = list(svid.cert_chain)
    for certificate, issuer in zip(chain, chain[1:]):
        certificate.verify_directly_issued_by(issuer)
    for root in bundle.x509_authorities:
        try:
            chain[-1].verify_directly_issued_by(root)
            break
        except Exception:
            continue
    else:
        raise ValueError("no root of the bundle vouches for the chain")
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    key = svid.private_key.public_key().public_bytes(der, public)
    if key != svid.leaf.public_key().public_bytes(der, public):
        raise ValueError("the key is not that of the certificate")
    return key.hex()


def show(client):
    context = client.fetch_x509_context(timeout=30)
    svid = context.default_svid
    bundles = context.x509_bundle_set
    domain = svid.spiffe_id.trust_domain
    key = verified(svid, bundles.get_bundle_for_trust_domain(domain))
    alone = client.fetch_x509_bundles(timeout=30).get_bundle_for_trust_domain(domain)
    assert alone.x509_authorities == bundles.get_bundle_for_trust_domain(domain).x509_authorities
    again = client.fetch_x509_svid(timeout=30)
    assert again.leaf == svid.leaf, "one process, one certificate"
    say(id=str(svid.spiffe_id), key=key, serial=f"{svid.leaf.serial_number:x}")


def rotations(client, wanted):
    serials, done = [], threading.Event()

    def heard(context):
        serial = f"{context.default_svid.leaf.serial_number:x}"
        if serial not in serials:
            serials.append(serial)
            say(serial=serial)
        if len(serials) >= wanted:
            done.set()

    def failed(error):
        say(failed=str(error))
        done.set()

    cancel = client.stream_x509_contexts(heard, failed, retry_connect=False)
    done.wait(120)
    cancel.cancel()


def stub(socket):
    return workload_pb2_grpc.SpiffeWorkloadAPIStub(grpc.insecure_channel(f"unix:{socket}"))


def main():
    socket, command, *arguments = sys.argv[1:]
    header = (("workload.spiffe.io", "true"),)
    if command == "bare":
        next(stub(socket).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=30))
        return
    if command == "svid":
        # By hand first: the package hides the code of a refusal.
        next(stub(socket).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header, timeout=30))
    with WorkloadApiClient(f"unix://{socket}") as client:
        if command in ("svid", "hold"):
            show(client)
        elif command == "rotations":
            rotations(client, int(arguments[0]))
        if command == "hold":
            sys.stdin.read()


try:
    main()
except grpc.RpcError as error:
    say(error=error.code().name, details=error.details())
