#pragma once

// Every resource that lives or lived, floor 1. Records are never removed, so a report can name a dead resource.

#include <pmr_debug/report.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pmr_debug::metadata {

enum class resource_kind : std::uint8_t { page, general_purpose, tracking, canary, end_of_page, temp, other };

struct resource_record {
    std::uint64_t id = 0;
    const void* address = nullptr;  ///< the std::pmr::memory_resource subobject
    const void* upstream = nullptr;
    void* core = nullptr;  ///< state of the resource, whose type follows from `kind`; null once dead
    resource_kind kind = resource_kind::other;
    std::atomic<bool> alive{false};
    trace_id born = trace_id::none;
    trace_id died = trace_id::none;
    const char* type = "";  ///< static string
    char name[64]{};        ///< copied, cut to fit, NUL-terminated
};

/// Effects: adds a record. Returns: null if private memory is used up; the caller then goes unregistered.
resource_record* register_resource(resource_kind kind, const char* type, std::string_view name, const void* address,
                                   const void* upstream, void* core, trace_id born) noexcept;

/// Effects: marks \p r dead. Null is allowed.
void unregister_resource(resource_record* r, trace_id died) noexcept;

/// Returns: the living resource at \p address (a std::pmr::memory_resource*), or null if it is none of this library's.
[[nodiscard]] resource_record* find_resource(const void* address) noexcept;

/// Effects: calls \p visit for every record, dead ones included, in order of construction, until it returns false.
void for_each_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept;

/// The public view of a record; empty for null.
[[nodiscard]] resource_ref describe(const resource_record* r) noexcept;

}  // namespace pmr_debug::metadata
