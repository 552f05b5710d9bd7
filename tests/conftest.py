"""One hypothesis profile: no deadline, since the machine also runs models; failures reproduce."""

from hypothesis import settings

settings.register_profile("disco", deadline=None, print_blob=True)
settings.load_profile("disco")
