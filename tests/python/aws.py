"""What an AWS SDK finds by its usual way of looking for credentials: METHOD ACCESS-KEY SECRET-KEY TOKEN."""

import botocore.session

found = botocore.session.Session().get_credentials()
frozen = found.get_frozen_credentials()
print(found.method, frozen.access_key, frozen.secret_key, frozen.token)
