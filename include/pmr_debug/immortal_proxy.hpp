#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// A forwarder that outlives its target, and everything else: calls that come after the target's end are reported
/// instead of undefined.
///
/// \verbatim
///   container ──> forwarder, in private pages, never freed ──> target
///                     │  target destroyed or retired                ╳
///                     └──> destroyed_resource: birth, death, and where the block was allocated
/// \endverbatim
///
/// \code
///   std::pmr::unsynchronized_pool_resource pool;
///   pmr_debug::immortal_proxy proxy = pmr_debug::make_proxy(&pool, {.name = "pool"});  // behind, so it ends first
///   std::pmr::vector<int> v(proxy.resource());
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {
class proxy_resource;
}

struct proxy_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler; must then live as long as anybody may call
    unsigned frames = 8;                ///< frames kept of each allocation
    /// Report blocks in use at retirement as live_at_destruction. Off: arenas are winked out on purpose.
    bool report_live = true;
};

/// The handle: retires the forwarder at its end. The forwarder itself, and its records, stay: some kilobytes for ever.
///
/// Retired, the forwarder reports every call as destroyed_resource: deallocate is then ignored, allocate throws
/// std::bad_alloc. A target that is one of this library's counts as retired when it is destroyed, without a word.
///
/// Thread safety: the forwarder as the target, and while it retires, calls that are under way must have come back. The
/// handle: one thread at a time.
/// Reports: destroyed_resource, live_at_destruction, null_free, bad_alignment, upstream_null, upstream_misaligned,
/// null_upstream, cycle.
class immortal_proxy {
public:
    explicit immortal_proxy(detail::upstream_argument target, const proxy_options& o = {});
    immortal_proxy(immortal_proxy&& other) noexcept : forwarder_(other.forwarder_) { other.forwarder_ = nullptr; }
    immortal_proxy& operator=(immortal_proxy&&) = delete;
    ~immortal_proxy();

    /// The forwarder: valid for ever. Preconditions: this was not moved from (here and below).
    [[nodiscard]] std::pmr::memory_resource* resource() const noexcept;
    /// Effects: the target is about to end. A second call does nothing.
    void retire() noexcept;
    [[nodiscard]] bool retired() const noexcept;
    /// Effects: sends calls to \p target from now on. A null target is reported as null_upstream, which ends the
    ///   process; one whose chain leads to the forwarder as cycle, and not taken. Blocks stay with the resource they
    ///   came from, so there should be none. Returns: false if nothing changed.
    bool retarget(std::pmr::memory_resource* target) noexcept;

    /// To be called before an arena below takes all its memory back at once, by `release()` or by its end.
    /// Effects: forgets all live blocks, which count as deallocated. Returns: how many. Preconditions: nobody uses the
    ///   forwarder until the memory was taken back.
    std::size_t before_upstream_release() noexcept;

    /// The target, which may be dead if this is retired().
    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;

private:
    detail::proxy_resource* forwarder_;
};

[[nodiscard]] inline immortal_proxy make_proxy(detail::upstream_argument target, const proxy_options& o = {}) {
    return immortal_proxy(target, o);
}

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
