#pragma once

// What a report says in words, floor 3; text and JSON share it.

#include "report/writer.hpp"

#include <pmr_debug/report.hpp>

#include <string_view>

namespace pmr_debug::detail {

inline constexpr std::string_view hint_of_early_use =
    "statics of different files are constructed in no defined order: make the resource a static of a function that "
    "returns it";

/// Effects: writes the kind and one sentence with the numbers that matter, as in
///   `double_free: 64-byte block 0x7f0000001040 was freed twice`.
void write_headline(writer& out, const report& r) noexcept;

/// Effects: writes `"index"`, or `tracking_resource #3` where it has no name.
void write_short_name(writer& out, const resource_ref& r) noexcept;

/// Effects: writes where \p p lies as seen from \p block: `16 bytes into the block`, `8 bytes past the end of the
/// block`, `4096 bytes before the block`; \p noun is the block's, `it` makes `past its end`.
/// Preconditions: block.address is not null.
void write_position(writer& out, const void* p, const block_info& block, std::string_view noun) noexcept;

/// True if what was given is an allocation's request, not a deallocation's claim about a block.
[[nodiscard]] bool is_request(error_kind kind) noexcept;

/// Returns: the hint of \p r, or the one of its kind; empty if there is none.
[[nodiscard]] std::string_view hint_of(const report& r) noexcept;

/// Returns: `live`, `freed`, `unknown`.
[[nodiscard]] std::string_view to_string(block_state state) noexcept;

/// Returns: `read`, `write`, `execute`, `unknown`.
[[nodiscard]] std::string_view to_string(access_kind access) noexcept;

/// Returns: `running`, `exit`, `thread_end`.
[[nodiscard]] std::string_view to_string(program_phase phase) noexcept;

/// True if the program may go on whatever the handler says of errors: a null pointer was deallocated as no bytes.
[[nodiscard]] constexpr bool is_harmless(const report& r) noexcept {
    return r.kind == error_kind::null_free && r.has_given && r.given_size == 0;
}

/// True for leaks that resources above have listed, all of them: then one line says it all.
[[nodiscard]] bool all_listed(const report& r) noexcept;

/// Effects: writes who has listed leaks before, as in `"index" above`.
void write_listed_by(writer& out, const report& r) noexcept;

/// True if the resource existed and is dead.
[[nodiscard]] constexpr bool is_dead(const resource_ref& r) noexcept {
    return r.id != 0 && !r.alive;
}

/// True if the block belongs to another resource than the one called.
[[nodiscard]] constexpr bool has_other_owner(const report& r) noexcept {
    return r.owner.id != 0 && r.owner.id != r.resource.id;
}

/// True if all that is known of the block is that it was there when its resource was destroyed.
[[nodiscard]] constexpr bool was_once(const report& r) noexcept {
    return r.kind == error_kind::invalid_free && is_dead(r.owner) && r.block.address != nullptr && !r.nearest_only &&
           r.block.state == block_state::unknown;
}

/// True for a write into memory that was never handed out: the block is only the nearest one, if there is any.
[[nodiscard]] constexpr bool hit_fresh_memory(const report& r) noexcept {
    return r.kind == error_kind::overrun && !r.faulted && r.first_bad != nullptr &&
           (r.nearest_only || r.block.address == nullptr);
}

/// \p to - \p from in bytes, modulo 2^64; both may be any addresses.
[[nodiscard]] inline std::uint64_t distance(const void* from, const void* to) noexcept {
    return reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
}

[[nodiscard]] inline bool is_below(const void* a, const void* b) noexcept {
    return reinterpret_cast<std::uintptr_t>(a) < reinterpret_cast<std::uintptr_t>(b);
}

}  // namespace pmr_debug::detail
