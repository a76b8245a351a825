# The wheel for every Linux with glibc 2.28 or newer, written into target/wheels. From the project's folder:
#
#   docker build --file packaging/manylinux.Dockerfile --output target/wheels .
#
# Nobody has run this yet; `make wheel` on a machine of one's own has been run and tested.
FROM quay.io/pypa/manylinux_2_28_x86_64 AS build
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.92.0
ENV PATH=/opt/python/cp312-cp312/bin:/root/.cargo/bin:$PATH
WORKDIR /project
COPY . .
RUN make wheel PYTHON=python3.12 PLATFORM=manylinux_2_28_x86_64

FROM scratch
COPY --from=build /project/target/wheels /
