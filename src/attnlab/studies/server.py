"""What the server that workers are forked from loads last: it ends at once, where it would take seconds to take apart
all that it has loaded. Nobody else imports this."""

import atexit
import os

atexit.register(os._exit, 0)
