#pragma once

// State of a tracking resource, floor 4. It sits in private pages.

#include "metadata/arena.hpp"
#include "metadata/block_table.hpp"
#include "metadata/registry.hpp"
#include "report/dispatch.hpp"
#include "resources/block_reports.hpp"
#include "resources/thread_binding.hpp"
#include "resources/upstream_watch.hpp"
#include "resources/usage.hpp"

#include <pmr_debug/tracking_resource.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace pmr_debug::detail {

struct tracking_core {
    // Read by every call, written never.
    std::pmr::memory_resource* upstream = nullptr;  // the one given, or `watch` over it
    std::pmr::memory_resource* given = nullptr;
    tracking_shape shape;
    unsigned alloc_frames = 0;
    unsigned free_frames = 0;
    std::size_t limit_bytes = 0;
    std::size_t limit_blocks = 0;
    bool limited = false;
    bool audit_winked_out = false;
    metadata::block_table blocks;
    metadata::resource_record* self = nullptr;
    metadata::arena memory;
    error_tally errors;

    alignas(64) usage_counters usage;

    alignas(64) thread_binding thread;
    upstream_watch watch;

    /// Effects: as tracking_resource_base::before_upstream_release says.
    std::size_t forget(trace_id here) noexcept;

    [[nodiscard]] block_reporter reports() noexcept { return {.errors = errors, .self = self, .blocks = blocks}; }

    /// Effects: makes a core in private pages and registers it. Throws: std::bad_alloc if there are none.
    static tracking_core* make(std::pmr::memory_resource* upstream, const tracking_options& o, const policy& p,
                               const std::pmr::memory_resource* owner, trace_id born);
    void destroy() noexcept;

    // The slow ends of allocate.
    [[noreturn]] void refuse_request(std::size_t bytes, std::size_t alignment);
    void reserve(std::size_t bytes, std::size_t alignment);
    [[noreturn]] void refuse_memory(void* p, std::size_t bytes, std::size_t alignment);
    [[noreturn]] void refuse_record(metadata::block_table::outcome why, void* p, std::size_t bytes,
                                    std::size_t alignment);
    void give_up(std::size_t bytes) noexcept;

    /// The slow end of deallocate, for all that is not exactly as recorded.
    void deallocate_oddly(void* p, std::size_t bytes, std::size_t alignment, trace_id here, std::uint32_t me) noexcept;
};

}  // namespace pmr_debug::detail
