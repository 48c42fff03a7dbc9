"""What an application in Python sees of a Workload API, by the `spiffe` package from PyPI.

    workload.py SOCKET svid            its certificate, verified by the bundles that came with it
    workload.py SOCKET hold            the same, then stays until standard input ends
    workload.py SOCKET rotations N     the serials that its stream brings, until there are N
    workload.py SOCKET follow          every answer of its stream, until the API ends it
    workload.py SOCKET bare            the answer to a call without the header
    workload.py SOCKET token NAME…     a token for these audiences, verified by the bundles and by the API
    workload.py SOCKET keys N          the ids of the keys of tokens that its stream brings, until there were N

As the user of the variable AS_USER, if that is set. One JSON object a line. An error of the API is `{"error": CODE, "details": TEXT}`.
"""

import json
import os
import sys
import threading

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
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


def token(client, audience):
    svid = client.fetch_jwt_svid(audience=audience)
    bundles = client.fetch_jwt_bundles()
    bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    alone = JwtSvid.parse_and_validate(svid.token, bundle, audience)
    asked = client.validate_jwt_svid(svid.token, sorted(audience)[0])
    assert str(alone.spiffe_id) == str(asked.spiffe_id) == str(svid.spiffe_id)
    assert client.fetch_jwt_svid(audience=audience).token == svid.token, "it is kept for half its life"
    refused = []
    for refuse in (
        lambda: JwtSvid.parse_and_validate(svid.token, bundle, {"somebody else"}),
        lambda: client.validate_jwt_svid(svid.token, "somebody else"),
        lambda: client.fetch_jwt_svid(audience=audience, subject=SpiffeId("spiffe://test.internal/ns/shop/sa/admin")),
    ):
        try:
            refuse()
        except Exception as error:
            refused.append(type(error).__name__)
    header = jwt.get_unverified_header(svid.token)
    claims = jwt.decode(svid.token, options={"verify_signature": False})
    say(id=str(svid.spiffe_id), header=header, claims=claims, refused=refused)


def keys(client, wanted):
    seen, done = [], threading.Event()

    def heard(bundles):
        for bundle in bundles.bundles:
            for kid in bundle.jwt_authorities:
                if kid not in seen:
                    seen.append(kid)
                    say(kid=kid)
        if len(seen) >= wanted:
            done.set()

    def failed(error):
        say(failed=str(error))
        done.set()

    cancel = client.stream_jwt_bundles(heard, failed, retry_connect=False)
    done.wait(120)
    cancel.cancel()


def follow(socket, header):
    for answer in stub(socket).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header):
        certificates = [load_der_x509_certificates(svid.x509_svid)[0] for svid in answer.svids]
        say(
            ids=[svid.spiffe_id for svid in answer.svids],
            serials=[f"{certificate.serial_number:x}" for certificate in certificates],
        )


def load_der_x509_certificates(chain):
    """The first certificate of several in DER, one after the other."""
    length = 4 + int.from_bytes(chain[2:4], "big")
    return [x509.load_der_x509_certificate(chain[:length])]


def stub(socket):
    return workload_pb2_grpc.SpiffeWorkloadAPIStub(grpc.insecure_channel(f"unix:{socket}"))


def main():
    socket, command, *arguments = sys.argv[1:]
    if user := os.environ.get("AS_USER"):
        # What is imported may lie where only root reads.
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    header = (("workload.spiffe.io", "true"),)
    if command == "bare":
        next(stub(socket).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=30))
        return
    if command == "follow":
        follow(socket, header)
        return
    if command == "svid":
        # By hand first: the package hides the code of a refusal.
        next(stub(socket).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header, timeout=30))
    with WorkloadApiClient(f"unix://{socket}") as client:
        if command in ("svid", "hold"):
            show(client)
        elif command == "rotations":
            rotations(client, int(arguments[0]))
        elif command == "token":
            token(client, set(arguments))
        elif command == "keys":
            keys(client, int(arguments[0]))
        if command == "hold":
            sys.stdin.read()


try:
    main()
except grpc.RpcError as error:
    say(error=error.code().name, details=error.details())
