"""What a Kubernetes cluster does for its service accounts: keys, projected tokens, and the API's TokenReview.

    cluster.py DIR keys                       makes DIR/key.pem and DIR/jwks.json
    cluster.py DIR token [NAME=VALUE …]       a token as the kubelet projects it, changed: audience, account, node, expires
    cluster.py DIR serve CERTIFICATE KEY      an API over HTTPS that reviews the tokens it signed, but for those of a pod
                                              that DIR/deleted names; says its port, and stays until standard input ends
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://kubernetes.default.svc.cluster.local"
POD = "orders-7d9"


def keys(directory):
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (directory / "key.pem").write_bytes(pem)
    public = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    public |= {"kid": "one", "use": "sig", "alg": "ES256"}
    (directory / "jwks.json").write_text(json.dumps({"keys": [public]}))


def token(directory, changes):
    now = int(time.time())
    account = changes.get("account", "shop:orders")
    namespace, name = account.split(":")
    claims = {
        "aud": [changes.get("audience", "fender")],
        "exp": now + int(changes.get("expires", "3600")),
        "iat": now,
        "nbf": now - 7200,
        "iss": ISSUER,
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": changes.get("node", "node-a"), "uid": "8f1c"},
            "pod": {"name": POD, "uid": "a1b2"},
            "serviceaccount": {"name": name, "uid": "c3d4"},
        },
        "sub": f"system:serviceaccount:{account}",
    }
    key = (directory / "key.pem").read_text()
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "one"})


def review(directory, asked):
    """As the reference of `authentication.k8s.io/v1` has it."""
    status = {"authenticated": False}
    try:
        key = serialization.load_pem_private_key((directory / "key.pem").read_bytes(), None)
        audiences = asked["spec"]["audiences"]
        claims = jwt.decode(
            asked["spec"]["token"], key.public_key(), algorithms=["ES256"], audience=audiences, issuer=ISSUER
        )
        bound = claims["kubernetes.io"]
        if (directory / "deleted").exists() and bound["pod"]["name"] in (directory / "deleted").read_text():
            raise jwt.InvalidTokenError("the pod is gone")
        extra = "authentication.kubernetes.io/"
        status = {
            "authenticated": True,
            "audiences": [audience for audience in audiences if audience in claims["aud"]],
            "user": {
                "username": claims["sub"],
                "uid": bound["serviceaccount"]["uid"],
                "extra": {
                    extra + "pod-name": [bound["pod"]["name"]],
                    extra + "pod-uid": [bound["pod"]["uid"]],
                    extra + "node-name": [bound["node"]["name"]],
                },
            },
        }
    except jwt.PyJWTError as error:
        status["error"] = str(error)
    return {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}


def serve(directory, certificate, key):
    class Api(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            known = self.headers["authorization"] == "Bearer reviewer"
            right = self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
            code = 201 if known and right else 403
            answer = json.dumps(review(directory, json.loads(body)) if code == 201 else {}).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


def main():
    directory, command, *rest = sys.argv[1:]
    directory = Path(directory)
    match command:
        case "keys":
            keys(directory)
        case "token":
            print(token(directory, dict(change.split("=", 1) for change in rest)))
        case "serve":
            serve(directory, *rest)


main()
