#pragma once

// State of the thin resources, floor 4. It sits in private pages.

#include "metadata/arena.hpp"
#include "metadata/registry.hpp"
#include "report/dispatch.hpp"
#include "resources/usage.hpp"

#include <pmr_debug/detail/pass_through.hpp>

#include <atomic>
#include <cstddef>
#include <memory_resource>
#include <new>
#include <string_view>
#include <type_traits>

namespace pmr_debug::detail {

/// Frames kept of births, deaths and errors.
inline constexpr unsigned pass_through_frames = 16;

struct pass_through_core {
    std::atomic<std::pmr::memory_resource*> upstream{nullptr};
    metadata::resource_record* self = nullptr;
    std::size_t core_bytes = 0;  ///< of the whole object, for giving it back
    error_tally errors;
    usage_counters usage;
    /// Takes the locks of a derived type, for a fork; null: it has none. Set before enlist().
    void (*hold_own)(pass_through_core& core, os::fork_locks& locks) noexcept = nullptr;

    /// Effects: reports an alignment that is no power of two. Throws: std::bad_alloc for that, or a sum that cannot be.
    void check_request(std::size_t bytes, std::size_t alignment);
    /// Returns: what the upstream gives, checked; counts a failure. Throws: std::bad_alloc, what the upstream throws.
    [[nodiscard]] void* ask(std::size_t bytes, std::size_t alignment);
    /// Returns: false, and reports, for a null pointer.
    [[nodiscard]] bool check_free(const void* p, std::size_t bytes, std::size_t alignment) noexcept;
    /// Effects: counts, and gives it to the upstream.
    void give_back(void* p, std::size_t bytes, std::size_t alignment);

    /// Effects: raises \p kind about a request.
    void complain(error_kind kind, const void* p, std::size_t bytes, std::size_t alignment) noexcept;
    /// Effects: registers the resource at \p owner, with its counters; reports a chain that leads back to it.
    void enlist(const char* type, std::string_view name, const std::pmr::memory_resource* owner,
                trace_id born) noexcept;
    /// Effects: unregisters it and gives the core back.
    void destroy(trace_id died) noexcept;

    /// Returns: a core of a derived type, not yet registered. Reports a null \p upstream and ends the process.
    /// Throws: std::bad_alloc if there is no private memory.
    template <class Core>
    static Core* make(std::pmr::memory_resource* upstream, const char* type, std::string_view name,
                      report_handler* handler, trace_id born) {
        static_assert(std::is_trivially_destructible_v<Core>);
        if (upstream == nullptr) {
            null_upstream(type, name, born);
        }
        metadata::arena* const memory = metadata::process_arena();
        void* const place = memory != nullptr ? memory->allocate(sizeof(Core)) : nullptr;
        if (place == nullptr) {
            throw std::bad_alloc();
        }
        Core* const core = ::new (place) Core;
        core->upstream.store(upstream, std::memory_order_relaxed);
        core->core_bytes = sizeof(Core);
        core->errors.handler.store(handler, std::memory_order_relaxed);
        return core;
    }
};

}  // namespace pmr_debug::detail
