#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// A general-purpose allocator that finds the errors of its callers: double, invalid, interior and foreign frees, wrong
/// sizes and alignments, overruns, writes after free, leaks. Modelled on Zig's DebugAllocator.
///
/// \verbatim
///   unit (4 KiB … 64 KiB, from the upstream)                     records (private pages, 16 bytes a slot)
///   +-----------+-----------+-----------+-----------+-- …        +------+------+------+------+-- …
///   | slot 0    | slot 1    | slot 2    | never used|            | live | freed| live | –    |
///   | user|slack| DD DD DD  | user|slack| AA AA AA  |            +------+------+------+------+-- …
///   +-----------+-----------+-----------+-----------+-- …        traces, size, alignment, state, threads
/// \endverbatim
///
/// Blocks above 8 KiB, or aligned above 4 KiB, are units of their own.
///
/// \code
///   pmr_debug::page_resource pages;
///   pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
///   std::pmr::vector<int> v({1, 2, 3}, &heap);
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

/// Options of a general-purpose resource. Sizes in bytes.
struct general_purpose_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    std::size_t limit_bytes = 0;        ///< most live requested bytes; 0: no limit
    std::size_t limit_blocks = 0;       ///< most live blocks; 0: no limit
    /// Bytes held from the upstream, addresses of retired units included (16 TiB): above it the oldest retired unit is
    /// used again.
    std::size_t address_space_bytes = std::size_t{1} << 44;
    /// Freed memory that is kept, in retired units and in units that live; less where the process's budget is less.
    /// Above it the oldest is trapped or goes back to the upstream; in units that live it is used again, or its pages
    /// are given back. Under reuse::quarantined: all retired memory; above it the oldest unit is used again.
    std::size_t quarantine_bytes = std::size_t{128} << 20;
    /// Records of retired units kept, so that a late double free is still explained. Above it the oldest are forgotten.
    std::size_t retired_record_bytes = std::size_t{16} << 20;
    /// Blocks that get pages of their own, and fault from the moment they are freed. Over an upstream that cannot trap
    /// pages they are blocks as others, and `statistics::untrapped_blocks` counts them. If they are chosen by size or
    /// number, all calls take the slow way. By default none but, under dead_unit::trap_at_once and where there is a
    /// `fault_handler`, the first thousand.
    trap_selection trap_freed{};
};

namespace detail {

struct general_purpose_core;

/// The part of a policy that shapes the code of the fast path. Everything else is data.
struct code_shape {
    threading threads = threading::synchronized;
    bool checks = true;
    bool traces = true;    ///< a record holds trace ids
    bool canary = true;    ///< slack is checked
    bool fill = true;      ///< freed bytes are filled
    bool recycle = false;  ///< freed slots are used again at once

    friend constexpr bool operator==(const code_shape&, const code_shape&) = default;
};

[[nodiscard]] constexpr code_shape shape_of(const policy& p) noexcept {
    return {.threads = p.threads,
            .checks = p.checks,
            .traces = p.alloc_frames != 0 || p.free_frames != 0,
            .canary = p.guard_bytes != 0,
            .fill = p.fill,
            .recycle = p.freed == reuse::immediate};
}

/// Entry points of the compiled shapes. Defined and explicitly instantiated in the library for every valid shape.
template <code_shape S>
struct general_purpose_engine {
    static void* allocate(general_purpose_core* core, std::size_t bytes, std::size_t alignment);
    static void deallocate(general_purpose_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept;
};

}  // namespace detail

/// What every instantiation shares: everything but the calls themselves.
class general_purpose_resource_base : public std::pmr::memory_resource {
public:
    general_purpose_resource_base(const general_purpose_resource_base&) = delete;
    general_purpose_resource_base& operator=(const general_purpose_resource_base&) = delete;

    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// Counters, exact once other threads are quiet. `peak_*` is exact with limits and in the other threading modes. In
    /// synchronized mode without limits it is taken with each block above 8 KiB or so, so that large ones are never
    /// missed, and of smaller ones with the first of those that are prepared together: for each size class and thread
    /// it may miss what was taken since, at most 16 KiB or one block; without fills 64 KiB; under reuse::immediate 63
    /// blocks. While other threads are busy it may be off by what they do meanwhile.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: verifies canaries of live blocks and fills of freed ones, reporting what is damaged.
    /// Returns: the number of damaged blocks. Preconditions: no other thread uses the resource meanwhile.
    std::size_t check() noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many.
    std::size_t report_leaks() noexcept;
    /// Effects: under threading::single_checked, makes the next thread to use the resource its owner: to hand it over.
    ///   Otherwise none. Preconditions: nobody uses the resource meanwhile, and what was done before happens before
    ///   what the next thread does.
    void rebind_thread() noexcept;

protected:
    general_purpose_resource_base(std::pmr::memory_resource* upstream, const general_purpose_options& o,
                                  const policy& p);
    /// Checks what is left, reports blocks still live as leaks, gives everything back to the upstream.
    ~general_purpose_resource_base() override;

    // What a call finds once the resource is dead: reports error_kind::destroyed_resource to the default handler. Holds
    // as long as nothing else was written where the object was.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::general_purpose_core* core_;
};

/// A general-purpose resource under a policy.
/// Throws: std::bad_alloc only. A null upstream is reported and ends the process. Thread safety: as the policy says.
/// The upstream is called without any lock held: it and its handlers may use this resource.
/// Reports: double_free, invalid_free, interior_free, null_free, wrong_resource, destroyed_resource, size_mismatch,
/// alignment_mismatch, overrun, write_after_free, foreign_thread, bad_alignment, limit_exceeded, upstream_null,
/// upstream_misaligned, upstream_overlap, leak.
template <policy P>
class basic_general_purpose_resource final : public general_purpose_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");
    using engine = detail::general_purpose_engine<detail::shape_of(P)>;

public:
    /// Upstream: std::pmr::new_delete_resource().
    basic_general_purpose_resource() : basic_general_purpose_resource(general_purpose_options{}) {}
    explicit basic_general_purpose_resource(detail::empty_braces /*options*/) : basic_general_purpose_resource() {}
    explicit basic_general_purpose_resource(const general_purpose_options& o)
        : general_purpose_resource_base(std::pmr::new_delete_resource(), o, P) {}
    explicit basic_general_purpose_resource(detail::upstream_argument upstream, const general_purpose_options& o = {})
        : general_purpose_resource_base(upstream.get(), o, P) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return engine::allocate(core_, bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        engine::deallocate(core_, p, bytes, alignment);
    }
};

using general_purpose_resource = basic_general_purpose_resource<default_policy>;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
