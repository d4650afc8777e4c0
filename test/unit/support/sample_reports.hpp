#pragma once

// One plausible report of every kind, without traces, for tests of how reports are written.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace test_support {

inline const void* at(std::uintptr_t address) {
    return reinterpret_cast<const void*>(address);
}

inline constexpr std::uintptr_t block_address = 0x7f0000001000;

inline pmr_debug::report sample(pmr_debug::error_kind kind) {
    using enum pmr_debug::error_kind;
    static const pmr_debug::leak_group groups[] = {
        {.blocks = 100, .bytes = 20'000, .example = at(block_address), .example_size = 200},
        {.blocks = 1, .bytes = 64, .example = at(block_address + 512), .example_size = 64},
    };
    pmr_debug::report r;
    r.kind = kind;
    r.resource = {
        .id = 3, .name = "index", .type = "general_purpose_resource", .address = at(0x7ffc00000010), .alive = true};
    r.thread = 2;
    const auto block = [&](pmr_debug::block_state state) {
        r.block = {.address = at(block_address),
                   .size = 64,
                   .alignment = 16,
                   .serial = 12,
                   .state = state,
                   .alloc_thread = 1,
                   .free_thread = state == pmr_debug::block_state::freed ? 4U : 0U};
        r.pointer = r.block.address;
    };
    const auto given = [&](std::size_t size, std::size_t alignment) {
        r.has_given = true;
        r.given_size = size;
        r.given_alignment = alignment;
    };
    const auto damage = [&](std::uintptr_t address, std::size_t bytes, std::uint8_t expected) {
        r.first_bad = at(address);
        r.bad_bytes = bytes;
        r.bad_value = 0x41;
        r.expected_value = expected;
    };
    switch (kind) {
        case leak:
        case live_at_destruction:
            r.leaks = groups;
            r.leaked_blocks = 101;
            r.leaked_bytes = 20'064;
            break;
        case double_free:
            block(pmr_debug::block_state::freed);
            given(64, 16);
            break;
        case invalid_free:
            block(pmr_debug::block_state::live);
            r.pointer = at(block_address + 64 + 4096);
            r.nearest_only = true;
            given(32, 8);
            break;
        case interior_free:
            block(pmr_debug::block_state::live);
            r.pointer = at(block_address + 16);
            given(64, 16);
            break;
        case null_free: given(32, 8); break;
        case wrong_resource:
            block(pmr_debug::block_state::live);
            r.owner = {.id = 7, .name = "", .type = "tracking_resource", .address = at(0x7ffc00000020), .alive = true};
            given(64, 16);
            break;
        case size_mismatch:
            block(pmr_debug::block_state::live);
            given(32, 16);
            break;
        case alignment_mismatch:
            block(pmr_debug::block_state::live);
            given(64, 8);
            break;
        case overrun:
            block(pmr_debug::block_state::live);
            damage(block_address + 64 + 3, 5, 0xaa);
            break;
        case underrun:
            block(pmr_debug::block_state::live);
            damage(block_address - 8, 1, 0xaa);
            break;
        case use_after_free:
            block(pmr_debug::block_state::freed);
            r.pointer = at(block_address + 24);
            break;
        case write_after_free:
            block(pmr_debug::block_state::freed);
            damage(block_address + 16, 4, 0xdd);
            break;
        case foreign_thread: r.other_thread = 1; break;
        case destroyed_resource:
            block(pmr_debug::block_state::live);
            r.resource.alive = false;
            given(64, 16);
            break;
        case bad_alignment: given(64, 3); break;
        case upstream_null: given(64, 16); break;
        case upstream_misaligned:
            given(64, 16);
            r.pointer = at(0x1008);
            break;
        case upstream_overlap:
            block(pmr_debug::block_state::live);
            r.pointer = at(block_address + 32);
            given(128, 16);
            break;
        case limit_exceeded:
            given(8, 8);
            r.limit = 1010;
            r.in_use = 1004;
            break;
        case arena_overflow:
            given(512, 16);
            r.limit = 1024;
            r.in_use = 600;
            break;
        case default_resource_used: given(24, 8); break;
        case null_upstream: r.resource = {.name = "index", .type = "general_purpose_resource"}; break;
        case fault:
            r.pointer = at(0x10);
            r.faulted = true;
            r.access = pmr_debug::access_kind::read;
            r.fault_cause = "a null pointer";
            break;
        case out_of_order_rewind:
        case cycle: break;
    }
    return r;
}

/// A sink into a std::string.
inline void append(std::string_view text, void* context) noexcept {
    static_cast<std::string*>(context)->append(text);
}

inline std::string text_of(const pmr_debug::report& r, const pmr_debug::text_options& options = {}) {
    std::string text;
    pmr_debug::write_text(r, options, append, &text);
    return text;
}

inline std::string json_of(const pmr_debug::report& r) {
    std::string text;
    pmr_debug::write_json(r, append, &text);
    return text;
}

}  // namespace test_support
