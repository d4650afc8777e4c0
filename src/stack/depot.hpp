#pragma once

// Every distinct trace of the process, floor 2: append-only, lock-free, in private memory.

#include "os/guarded.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::stack {

/// Bits of depot_entry::ending. How a chain of frames ends belongs to what it is, like the frames themselves.
inline constexpr std::uint8_t ends_at_depth = 1;
inline constexpr std::uint8_t ends_cut_short = 2;
/// Not how it ends, but what it rests on.
inline constexpr std::uint8_t is_unverified = 4;
/// Nor is this: the last word of the chain is no frame, but the numbers of up to four files that may be unloaded, see
/// rules.hpp. The same addresses in other files are another trace.
inline constexpr std::uint8_t has_files = 8;

/// A trace: a chain of return addresses, innermost first, which follow the header. An id is an entry's offset from the
/// depot's start, divided by 8.
struct alignas(8) depot_entry {
    std::uint32_t next;                  ///< id of the next entry in the bucket, 0 at its end; fixed once published
    std::uint32_t hash;                  ///< of the frames and the ending
    std::uint8_t depth;                  ///< number of frames
    std::uint8_t ending;                 ///< ends_ bits
    std::atomic<std::uint8_t> is_trace;  ///< 1 once handed out

    [[nodiscard]] const std::uintptr_t* frames() const noexcept {
        return reinterpret_cast<const std::uintptr_t*>(this + 1);
    }
};
static_assert(sizeof(depot_entry) == 12 + 4);

/// Order-sensitive hash of a chain.
[[nodiscard]] std::uint32_t hash_chain(const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept;

namespace detail {
inline constexpr std::size_t bucket_count = std::size_t{1} << 20;
struct depot_state {
    std::atomic<unsigned char*> base{nullptr};
    // Written seldom, or for chains that are slow anyway.
    alignas(64) std::atomic<std::uint64_t> capacity{0};
    std::atomic<std::uint64_t> limit{~std::uint64_t{0}};
    std::atomic<std::uint64_t> used{8};       // id 0 means none
    std::atomic<std::uint64_t> committed{0};  // bytes from the start that may be accessed; never less than used
    std::atomic<bool> full{false};
    std::atomic<std::uint64_t> traces{0};
    std::atomic<std::uint64_t> lost{0};
    std::atomic<std::uint64_t> slow_walks{0};
    std::atomic<std::uint64_t> cut_short{0};
};
extern os::guarded<depot_state> state;
// Zero pages until touched: they cost address space only. Not of std::atomic, which would have them written at start.
struct bucket_table {
    std::uint32_t heads[bucket_count];
};
extern os::guarded<bucket_table> buckets;

inline std::atomic_ref<std::uint32_t> bucket_of(std::uint32_t hash) noexcept {
    return std::atomic_ref(buckets->heads[hash % bucket_count]);
}
}  // namespace detail

/// Preconditions: \p id came from this depot.
[[nodiscard]] inline depot_entry* entry_at(std::uint32_t id) noexcept {
    return reinterpret_cast<depot_entry*>(detail::state->base.load(std::memory_order_relaxed) + std::uint64_t{id} * 8);
}

/// Returns: the id of the chain, 0 if it is not there. \p hash is its hash. Lock-free.
[[nodiscard]] std::uint32_t find(std::uint32_t hash, const std::uintptr_t* frames, unsigned depth,
                                 std::uint8_t ending) noexcept;

/// Effects: adds the chain unless it is there. Two threads that add equal chains at once get equal ids.
/// Returns: its id, 0 if the depot is full. Lock-free.
[[nodiscard]] std::uint32_t intern(std::uint32_t hash, const std::uintptr_t* frames, unsigned depth,
                                   std::uint8_t ending) noexcept;

/// Effects: notes that \p id is handed out as a trace, for the statistics. Returns: \p id as a trace.
trace_id hand_out(std::uint32_t id) noexcept;

/// Returns: the numbers of the files of \p id, 16 bits each, lowest first; 0: none.
[[nodiscard]] std::uint64_t files_of(trace_id id) noexcept;

/// True once an entry was refused for lack of memory.
[[nodiscard]] bool is_full() noexcept;

void count_lost() noexcept;
void count_slow_walk() noexcept;

/// Effects: gives its memory back, as the library is unloaded. All traces are gone then.
void give_back_depot() noexcept;

/// For tests: no more than \p bytes are used from now on.
void limit_bytes(std::uint64_t bytes) noexcept;

}  // namespace pmr_debug::stack
