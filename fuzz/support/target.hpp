#pragma once

// What a target provides, and what runs it: libFuzzer, or replay.cpp.

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
