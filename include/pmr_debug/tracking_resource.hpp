#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Passes every request to its upstream and keeps account: live set, peak, totals, size histogram, leaks by call path.
///
/// A tracking resource whose upstream is a tracking resource is its child: together they form a tree of scopes.
///
/// \verbatim
///   scope          live      blocks  most bytes  allocations
///   game           1.2 MiB     4100     1.3 MiB         9000
///   ├── textures   1.1 MiB      100     1.2 MiB          120     textures(&game), script(&game)
///   └── script    96.0 KiB     4000    96.0 KiB         8880
/// \endverbatim
///
/// \code
///   pmr_debug::tracking_resource scope({.name = "index"});
///   {
///       std::pmr::vector<int> v({1, 2, 3}, &scope);
///       assert(scope.stats().live_bytes == 12);
///   }
///   assert(scope.ok());
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {

struct tracking_core;

/// The part of a policy that shapes the code of a tracking resource. Frame counts are data.
struct tracking_shape {
    threading threads = threading::synchronized;
    bool checks = true;  ///< a live set is kept
    bool traces = true;  ///< its records hold trace ids

    friend constexpr bool operator==(const tracking_shape&, const tracking_shape&) = default;
};

[[nodiscard]] constexpr tracking_shape tracking_shape_of(const policy& p) noexcept {
    // Without checks nobody would be told about a second thread.
    const bool alone = p.threads == threading::unchecked || (p.threads == threading::single_checked && !p.checks);
    return {.threads = alone ? threading::unchecked : p.threads,
            .checks = p.checks,
            .traces = p.alloc_frames != 0 || p.free_frames != 0};
}

/// Entry points of the compiled shapes. Defined and explicitly instantiated in the library for every valid shape.
template <tracking_shape S>
struct tracking_engine {
    static void* allocate(tracking_core* core, std::size_t bytes, std::size_t alignment);
    static void deallocate(tracking_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept;
};

}  // namespace detail

/// Options of a tracking resource.
struct tracking_options {
    std::string_view
        name{};  ///< shown in reports and in the tree; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    std::size_t limit_bytes = 0;        ///< most live requested bytes; 0: no limit
    std::size_t limit_blocks = 0;       ///< most live blocks; 0: no limit
    /// About how many freed blocks are remembered, so that a double free is told from a stray pointer.
    std::size_t freed_records = 4096;
    bool audit_winked_out = false;  ///< before_upstream_release() reports live blocks as live_at_destruction
};

/// Allocations by size: bucket i counts requests of [2^(i-1)+1, 2^i] bytes, bucket 0 those of 0 or 1 byte.
struct size_histogram {
    std::array<std::uint64_t, 65> counts{};
};

/// What every instantiation shares: everything but the calls themselves.
class tracking_resource_base : public std::pmr::memory_resource {
public:
    tracking_resource_base(const tracking_resource_base&) = delete;
    tracking_resource_base& operator=(const tracking_resource_base&) = delete;

    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// Counters, consistent with each other and exact in every threading mode, `peak_*` included. `upstream_bytes` is
    /// `live_bytes`; units and residency are the upstream's to tell.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] size_histogram histogram() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many.
    std::size_t report_leaks() noexcept;
    /// To be called before an arena below takes all its memory back at once, by `release()` or by its end. The resource
    /// cannot see that, and would take addresses that are handed out again for upstream_overlap.
    ///
    /// Effects: reports live blocks as live_at_destruction if the options ask for the audit; then forgets them, without
    ///   giving anything back. They count as deallocated; one that is freed later is an invalid_free with this call's
    ///   trace. Resources between this one and the arena need a call of their own.
    /// Returns: how many blocks were live.
    /// Preconditions: nobody uses the resource until the memory was taken back.
    std::size_t before_upstream_release() noexcept;
    /// Effects: writes this scope and its children, oldest first, as a tree under a line of headings. A line has name,
    ///   live bytes and blocks, most bytes so far, allocations so far. A child's blocks count in its parents, too, as
    ///   they pass through. Resources of other kinds in between end a branch. Thread safety: any thread.
    void write_tree(text_sink sink, void* context) const noexcept;
    /// Effects: under threading::single_checked, makes the next thread to use the resource its owner: to hand it over.
    ///   Otherwise none. Preconditions: nobody uses the resource meanwhile, and what was done before happens before
    ///   what the next thread does.
    void rebind_thread() noexcept;

protected:
    tracking_resource_base(std::pmr::memory_resource* upstream, const tracking_options& o, const policy& p);
    /// Reports blocks still live as leaks. They stay with the upstream: only their owner can free them.
    ~tracking_resource_base() override;

    // Reached only by calls to a resource that was destroyed: reports destroyed_resource to the default handler.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::tracking_core* core_;
};

/// A tracking resource under a policy. With `checks` off only counters are kept, nothing is reported, and limits refuse
/// in silence; with frames 0 the live set has no traces. Fills, canaries, reuse, write protection and exact_alignment
/// do not apply: the memory is the upstream's, and so is where in it a block lies.
///
/// A block is recorded after the upstream gave it and forgotten before the upstream gets it back. A double, invalid,
/// interior, null or wrong-resource free never reaches the upstream; after a size or alignment mismatch the upstream
/// gets what was recorded. Whether the upstream gave memory that is in use is noticed only for the very same address.
///
/// Throws: std::bad_alloc, and what the upstream throws. A null upstream is reported and ends the process.
/// Thread safety: as the policy says. single_checked: the records stay sound when a second thread comes, by a lock that
/// costs nothing while the process has one thread; `report::other` is the bound thread's last traced use, or its first
/// use where no traces are kept.
/// Reports: double_free, invalid_free, interior_free, null_free, wrong_resource, size_mismatch, alignment_mismatch,
/// foreign_thread, bad_alignment, limit_exceeded, leak, live_at_destruction, upstream_null, upstream_misaligned,
/// upstream_overlap, null_upstream, destroyed_resource.
template <policy P>
class basic_tracking_resource final : public tracking_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");
    using engine = detail::tracking_engine<detail::tracking_shape_of(P)>;

public:
    /// Upstream: std::pmr::new_delete_resource().
    basic_tracking_resource() : basic_tracking_resource(tracking_options{}) {}
    explicit basic_tracking_resource(detail::empty_braces /*options*/) : basic_tracking_resource() {}
    explicit basic_tracking_resource(const tracking_options& o)
        : tracking_resource_base(std::pmr::new_delete_resource(), o, P) {}
    explicit basic_tracking_resource(detail::upstream_argument upstream, const tracking_options& o = {})
        : tracking_resource_base(upstream.get(), o, P) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return engine::allocate(core_, bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        engine::deallocate(core_, p, bytes, alignment);
    }
};

using tracking_resource = basic_tracking_resource<default_policy>;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
