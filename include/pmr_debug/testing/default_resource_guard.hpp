#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Guards of `std::pmr::get_default_resource()`: one sets it for a scope, one forbids its use in a scope.
///
/// \code
///   #include <pmr_debug/testing/default_resource_guard.hpp>
///   pmr_debug::general_purpose_resource memory({.name = "all defaults"});
///   const pmr_debug::testing::default_resource_guard as_default(&memory);
///   …
///   const pmr_debug::testing::forbid_default_resource nobody;
///   std::pmr::string s(100, 'x', &memory);  // fine
///   std::pmr::string t(100, 'x');           // reported: default_resource_used, with the trace
/// \endcode

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <gsl/pointers>

#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace pmr_debug::testing {

/// Effects: sets the default resource; at its end the previous one is set again. Reported then, to \p handler (null:
/// the default handler):
///   - default_resource_used, if somebody has set another one meanwhile and not restored ours. `report::pointer` is
///     theirs, `report::owner` says what it is, dead ones included;
///   - destroyed_resource, if the previous one, of this library, has died. Then std::pmr::new_delete_resource() is set.
/// Thread safety: one thread at a time, as the default resource is one for the whole process.
class default_resource_guard {
public:
    explicit default_resource_guard(gsl::not_null<std::pmr::memory_resource*> resource,
                                    report_handler* handler = nullptr) noexcept;
    default_resource_guard(const default_resource_guard&) = delete;
    default_resource_guard& operator=(const default_resource_guard&) = delete;
    ~default_resource_guard();

    [[nodiscard]] std::pmr::memory_resource* previous() const noexcept { return previous_; }

private:
    std::pmr::memory_resource* ours_;
    std::pmr::memory_resource* previous_;
    std::uint64_t previous_id_;  // in the registry; 0: none of this library's
    report_handler* handler_;
    trace_id born_;
};

/// What happens when the default resource is used where it is forbidden.
enum class on_default_use : std::uint8_t {
    report,  ///< default_resource_used, and the handler decides
    abort,   ///< reported, then the process ends whatever the handler says
    count,   ///< counted only
};

namespace detail {
class forbidden_default;
}

/// Forbids allocating from the default resource for a scope. An allocation is reported or counted, and then carried out
/// by the resource that was the default before, so the program goes on, and its blocks can be freed at any time. Nested
/// scopes: the innermost one speaks.
///
/// What is installed compares equal to all that the resource behind compares equal to, and to that itself, as blocks
/// may go back to either; the other way round it is that resource which answers, and most go by identity.
///
/// Who got hold of the default resource within the scope may keep it: what was installed is never freed (some 256 bytes
/// a scope), and only forwards once the scope is over.
/// Thread safety: uses from any thread; the scope itself as default_resource_guard.
/// Reports: default_resource_used; at the end, as default_resource_guard.
class forbid_default_resource {
public:
    /// Throws: std::bad_alloc if there is no private memory.
    explicit forbid_default_resource(on_default_use what = on_default_use::report, report_handler* handler = nullptr);
    forbid_default_resource(const forbid_default_resource&) = delete;
    forbid_default_resource& operator=(const forbid_default_resource&) = delete;
    ~forbid_default_resource();

    /// Allocations so far.
    [[nodiscard]] std::uint64_t uses() const noexcept;
    /// Where the first one came from; none if there was none.
    [[nodiscard]] trace_id first_use() const noexcept;

private:
    detail::forbidden_default* forwarder_;
    default_resource_guard guard_;
};

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
