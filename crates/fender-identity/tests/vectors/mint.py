"""Mints jwt.txt and keys.json, beside this file, with PyJWT: what another implementation signs, ours must read.

    python3 -m venv /tmp/pyjwt && /tmp/pyjwt/bin/pip install 'pyjwt[crypto]==2.10.1' && /tmp/pyjwt/bin/python mint.py

The private keys are thrown away. Each line of jwt.txt is a name, a space and a token.
"""

import json
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

CLAIMS = {
    "iss": "https://issuer.test",
    "sub": "spiffe://mesh.test/ns/shop/sa/orders",
    "aud": "fender",
    "iat": 1_800_000_000,
    "nbf": 1_800_000_000,
    "exp": 1_800_003_600,
    "jti": "one",
}
here = Path(__file__).parent
keys, tokens = [], []


def publish(kid, key, algorithms, writer):
    entry = json.loads(writer.to_jwk(key.public_key()))
    entry.pop("key_ops", None)
    keys.append(entry | {"kid": kid, "use": "sig"})
    for algorithm in algorithms:
        tokens.append((algorithm, jwt.encode(CLAIMS, key, algorithm, headers={"kid": kid})))


rsa_key = rsa.generate_private_key(65537, 2048)
publish("rsa", rsa_key, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], RSAAlgorithm)
publish("p256", ec.generate_private_key(ec.SECP256R1()), ["ES256"], ECAlgorithm)
publish("p384", ec.generate_private_key(ec.SECP384R1()), ["ES384"], ECAlgorithm)
publish("p521", ec.generate_private_key(ec.SECP521R1()), ["ES512"], ECAlgorithm)
publish("ed", ed25519.Ed25519PrivateKey.generate(), ["EdDSA"], OKPAlgorithm)
tokens.append(("two-audiences", jwt.encode(CLAIMS | {"aud": ["fender", "other"]}, rsa_key, "RS256", headers={"kid": "rsa"})))
tokens.append(("no-audience", jwt.encode({k: v for k, v in CLAIMS.items() if k != "aud"}, rsa_key, "RS256", headers={"kid": "rsa"})))
tokens.append(("fraction", jwt.encode(CLAIMS | {"exp": 1_800_003_600.5}, rsa_key, "RS256", headers={"kid": "rsa"})))
tokens.append(("none", jwt.encode(CLAIMS, None, "none", headers={"kid": "rsa"})))
tokens.append(("hs256", jwt.encode(CLAIMS, "x" * 32, "HS256", headers={"kid": "rsa"})))

(here / "keys.json").write_text(json.dumps({"keys": keys}, indent=2) + "\n")
(here / "jwt.txt").write_text("".join(f"{name} {token}\n" for name, token in tokens))
