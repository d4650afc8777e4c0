# Toolchain: code for 64-bit ARM, by Debian's cross compiler, run by QEMU's user mode. See ./cmake/dev test aarch64.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# Few addresses: QEMU has an entry for each reserved page, and copies them for each fork. With the 1 TiB that an
# end_of_page_resource takes where it can, those are gigabytes, and a fork is seconds.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -R 16G -L /usr/aarch64-linux-gnu)
