#pragma once

/// \file
/// Passes every request to its upstream and keeps account: live set, peak, totals, size histogram, leaks by call path.
///
/// A tracking resource whose upstream is a tracking resource is its child: together they form a tree of scopes.
///
/// \verbatim
///   game  1.2 MiB in 4 100 blocks
///   ├── textures  1.1 MiB in 100 blocks          textures(&game), script(&game)
///   └── script    96 KiB in 4 000 blocks
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

#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <gsl/pointers>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {
struct tracking_core;
}

/// Options of a tracking resource.
struct tracking_options {
    std::string_view name{};            ///< shown in reports and in the tree; copied
    report_handler* handler = nullptr;  ///< null: the default handler
    std::size_t limit_bytes = 0;        ///< most live requested bytes; 0: no limit
    std::size_t limit_blocks = 0;       ///< most live blocks; 0: no limit
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
    /// Counters. `live_*` and `peak_*` are exact in every threading mode.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] size_histogram histogram() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many.
    std::size_t report_leaks() noexcept;
    /// Effects: writes this scope and its children as a tree, a line each: name, live bytes and blocks, peak, total.
    void write_tree(text_sink sink, void* context) const noexcept;

protected:
    tracking_resource_base(std::pmr::memory_resource* upstream, const tracking_options& o, const policy& p);
    /// Reports blocks still live as leaks. They stay with the upstream: only their owner can free them.
    ~tracking_resource_base() override;

    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::tracking_core* core_;
};

/// A tracking resource under a policy. With `checks` off only counters are kept; with frames 0 the live set has no
/// traces. Fills, canaries and reuse do not apply: the memory is the upstream's. Reports: double_free and invalid_free
/// (both without reaching the upstream), interior_free, null_free, wrong_resource, size_mismatch, alignment_mismatch,
/// foreign_thread, bad_alignment, limit_exceeded, leak, upstream_null, upstream_misaligned, upstream_overlap.
template <policy P>
class basic_tracking_resource final : public tracking_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");

public:
    /// Upstream: std::pmr::new_delete_resource().
    basic_tracking_resource() : basic_tracking_resource(tracking_options{}) {}
    explicit basic_tracking_resource(const tracking_options& o)
        : tracking_resource_base(std::pmr::new_delete_resource(), o, P) {}
    explicit basic_tracking_resource(std::pmr::memory_resource* upstream, const tracking_options& o = {})
        : tracking_resource_base(upstream, o, P) {}
    explicit basic_tracking_resource(gsl::not_null<std::pmr::memory_resource*> upstream, const tracking_options& o = {})
        : tracking_resource_base(upstream.get(), o, P) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
};

using tracking_resource = basic_tracking_resource<default_policy>;

}  // namespace pmr_debug
