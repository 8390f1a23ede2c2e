# A machine with systemd as its first process and Forebay's units installed as docs/deploying.md says, for test_machine.py.
# Built in deploy/systemd, from the images of the compose file.
ARG RUNTIME_IMAGE=debian:bookworm-slim
FROM ${RUNTIME_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends systemd systemd-sysv dbus \
    && rm -rf /var/lib/apt/lists/*
COPY --from=forebay:local /usr/local/bin/forebay /usr/bin/forebay
COPY --from=forebay-mock:local /usr/local/bin/forebay-mock-vllm /usr/bin/forebay-mock-vllm
COPY *.service *.socket /etc/systemd/system/
COPY forebay.sysusers.conf /usr/lib/sysusers.d/forebay.conf
RUN systemd-sysusers
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/sbin/init"]
