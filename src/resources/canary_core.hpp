#pragma once

// State of a canary resource, floor 4. It sits in private pages.

#include "metadata/arena.hpp"
#include "metadata/block_table.hpp"
#include "metadata/registry.hpp"
#include "os/brief_lock.hpp"
#include "os/virtual_memory.hpp"
#include "report/dispatch.hpp"
#include "resources/block_reports.hpp"
#include "resources/canary_pattern.hpp"
#include "resources/canary_quarantine.hpp"
#include "resources/thread_binding.hpp"
#include "resources/upstream_watch.hpp"
#include "resources/usage.hpp"

#include <pmr_debug/canary_resource.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace pmr_debug::detail {

/// How a block lies in what the upstream gave.
struct canary_layout {
    std::size_t front = 0;      ///< bytes before the block
    std::size_t back = 0;       ///< bytes behind it
    std::size_t total = 0;      ///< what the upstream is asked for; at least 1, so that each block has an address
    std::size_t alignment = 1;  ///< what the upstream is asked for
};

struct canary_core {
    // Read by every call, written never.
    std::pmr::memory_resource* upstream = nullptr;  // the one given, or `watch` over it
    std::pmr::memory_resource* given = nullptr;
    canary_shape shape;
    unsigned alloc_frames = 0;
    unsigned free_frames = 0;
    std::size_t guard_bytes = 0;
    bool exact = false;  ///< blocks are aligned to no more than was asked for
    bool odd = false;    ///< exact, or without guards: not the common layout
    bool audit_winked_out = false;
    bool watched = false;  ///< Memcheck or AddressSanitizer is at work, see canary_tools.cpp
    canary_pattern guard;
    canary_pattern fresh;
    canary_pattern freed;
    metadata::block_table blocks;
    metadata::resource_record* self = nullptr;
    metadata::arena memory;
    error_tally errors;

    alignas(64) usage_counters usage;
    std::atomic<std::size_t> held{0};  ///< bytes of the upstream's

    alignas(64) canary_quarantine quarantine;
    alignas(64) thread_binding thread;
    upstream_watch watch;

    [[nodiscard]] block_reporter reports() noexcept {
        return {.errors = errors, .self = self, .blocks = blocks, .below_of = below_of, .core = this};
    }
    /// For block_reporter.
    [[nodiscard]] static metadata::block_below below_of(const void* core, const metadata::block_entry& e) noexcept {
        const canary_layout l = static_cast<const canary_core*>(core)->layout(e.size, e.alignment);
        return {.base = static_cast<const unsigned char*>(e.address) - l.front, .bytes = l.total};
    }

    /// Preconditions: guard_bytes, size and alignment add up, see is_possible().
    [[nodiscard]] canary_layout layout(std::size_t bytes, std::size_t alignment) const noexcept {
        if (odd) [[unlikely]] {
            return odd_layout(bytes, alignment);
        }
        const std::size_t front = (guard_bytes + alignment - 1) & ~(alignment - 1);
        const std::size_t back = guard_bytes + ((8 - (bytes & 7U)) & 7U);
        return {.front = front, .back = back, .total = front + bytes + back, .alignment = alignment};
    }

    /// True if the request is one that layout() can answer without overflow, and that the quarantine may be given up
    /// for. Not every upstream can be trusted to notice sums that cannot be.
    [[nodiscard]] bool is_possible(std::size_t bytes, std::size_t alignment) const noexcept {
        constexpr std::size_t most = os::address_space_bytes;
        if ((alignment & (alignment - 1)) != 0 || alignment == 0 || bytes > most || alignment > most - bytes) {
            return false;
        }
        // The front is below guard_bytes + alignment, or twice that if exact; the back below guard_bytes + 8.
        const std::size_t more = exact ? alignment : 0;
        return more <= most - bytes - alignment && 2 * guard_bytes + 8 <= most - bytes - alignment - more;
    }

    void hold(std::size_t bytes) noexcept { add_to_held(bytes); }
    void let_go(std::size_t bytes) noexcept { add_to_held(std::size_t{0} - bytes); }

    /// The block's first byte, to write to.
    [[nodiscard]] static std::byte* start(const metadata::block_entry& e) noexcept {
        return static_cast<std::byte*>(const_cast<void*>(e.address));
    }

    /// Effects: makes a core in private pages and registers it. Throws: std::bad_alloc if there are none.
    static canary_core* make(std::pmr::memory_resource* upstream, const canary_options& o, const policy& p,
                             const std::pmr::memory_resource* owner, trace_id born);
    void destroy() noexcept;

    // The slow ends of allocate.
    /// Effects: gives back what waits, each block verified, and asks the upstream once more. Preconditions: it threw
    ///   bad_alloc, which is being handled. Throws: the same if nothing went back, or what the upstream throws now.
    void* ask_again(std::size_t bytes, std::size_t alignment);
    [[noreturn]] void refuse_request(std::size_t bytes, std::size_t alignment);
    [[noreturn]] void refuse_memory(void* base, const canary_layout& at, std::size_t bytes, std::size_t alignment);
    [[noreturn]] void refuse_record(metadata::block_table::outcome why, std::byte* p, const canary_layout& at,
                                    std::size_t bytes, std::size_t alignment);

    // The slow ends of deallocate.
    void refuse_pointer(metadata::block_table::outcome why, void* p, metadata::block_entry& known, std::size_t bytes,
                        std::size_t alignment) noexcept;
    /// Effects: reports which guards of a block just freed are damaged, and keeps it.
    void keep_overrun(const retired_block& b) noexcept;

    /// Effects: puts a freed block in quarantine, and gives back what that pushes out.
    void retire(const retired_block& b) noexcept;
    void give_back(const retired_block& b) noexcept;

    /// Effects: as canary_resource_base::check says.
    std::size_t check() noexcept;
    /// Effects: as canary_resource_base::before_upstream_release says.
    std::size_t forget(trace_id here) noexcept;
    /// Effects: gives all freed blocks back, damaged ones included.
    void drain() noexcept;

    // ---- canary_tools.cpp. Preconditions: watched.
    /// Effects: closes the guards of a block that is handed out.
    void announce(std::byte* p, std::size_t bytes, std::size_t alignment) const noexcept;
    /// Effects: the rest of deallocate, once the block's record is found, and freed.
    void deallocate_watched(const retired_block& b) noexcept;
    void open_guards(const metadata::block_entry& e) const noexcept;

private:
    [[nodiscard]] canary_layout odd_layout(std::size_t bytes, std::size_t alignment) const noexcept;
    void add_to_held(std::size_t bytes) noexcept {
        if (os::single_threaded()) {
            held.store(held.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
        } else {
            held.fetch_add(bytes, std::memory_order_relaxed);
        }
    }
    [[nodiscard]] bool has_guards(const metadata::block_entry& e) const noexcept;  ///< intact ones
    [[nodiscard]] bool is_whole(const retired_block& b) const noexcept;
    [[nodiscard]] canary_damage front_damage(const metadata::block_entry& e) const noexcept;
    [[nodiscard]] canary_damage back_damage(const metadata::block_entry& e) const noexcept;
    [[nodiscard]] canary_damage retired_damage(const retired_block& b) const noexcept;
    /// A block whose guard is broken up to, or from, the damage of another one.
    struct culprit {
        const void* block = nullptr;  ///< null: none
        std::size_t size = 0;
        bool overrun = false;  ///< behind its end; else before its start
    };
    [[nodiscard]] culprit look_beside(error_kind kind, const metadata::block_entry& e, const canary_damage& d) noexcept;
    void report_damage(error_kind kind, const metadata::block_entry& e, const canary_damage& d) noexcept;
    /// Returns: false if the block is damaged, and kept.
    bool release(const retired_block& b) noexcept;
    // ---- canary_tools.cpp: all of a block's memory is to be touched again, by nobody, but for the block by nobody
    void open_all(const metadata::block_entry& e) const noexcept;
    void close_all(const metadata::block_entry& e) const noexcept;
    void show_live(const metadata::block_entry& e) const noexcept;
    std::size_t check_live() noexcept;
    std::size_t check_waiting() noexcept;
};

}  // namespace pmr_debug::detail
