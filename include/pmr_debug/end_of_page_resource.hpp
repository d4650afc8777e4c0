#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Each block ends where a page without permissions begins, so that the first byte behind it faults, at the instruction
/// that touches it. Freed blocks fault, too. In the manner of Electric Fence, without its cost.
///
/// \verbatim
///   placement::before_guard (default): overruns fault          placement::after_guard: underruns fault
///   +------------------+##################+--                  +##################+------------------+--
///   |   CCCC block   cc| guard page       |  next slot         | guard page       |block CCCC        |  next slot
///   +------------------+##################+--                  +##################+------------------+--
///    C  canary next to the block   c  canary that fills up to the alignment: none if the size is a multiple of it
/// \endverbatim
///
/// Slots of one size make a strip of 2 MiB. Addresses are not used again before all of the resource's address space
/// was, unless the policy says so.
///
/// \code
///   pmr_debug::end_of_page_resource fence({.name = "fence"});
///   std::pmr::vector<int> v({1, 2, 3}, &fence);
///   // v.data()[3] = 4;  // faults here
/// \endcode
///
/// The idea is Bruce Perens' Electric Fence; that guards need not be mappings of their own is Linux'
/// MADV_GUARD_INSTALL.

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

/// On which side of a block its guard page lies.
enum class placement : std::uint8_t {
    before_guard,  ///< the block ends at its guard page: overruns fault
    after_guard,   ///< the block begins at the end of its guard page: underruns fault
};

/// Options of an end-of-page resource. Sizes in bytes.
struct end_of_page_options {
    std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    placement where = placement::before_guard;
    std::size_t limit_bytes = 0;   ///< most live requested bytes; 0: no limit
    std::size_t limit_blocks = 0;  ///< most live blocks; 0: no limit
    /// Address space, of which a small block takes two pages; reserved at construction. 0: 1 TiB, or what the system
    /// grants; over a `page_resource` 8 GiB. When all of it was used, the retired part is used again, the oldest first.
    /// Where the process's addresses are limited, 0 reserves none, and uses retired ones again from an eighth of the
    /// limit on; over a `page_resource` it is an eighth of the limit at most.
    std::size_t address_space_bytes = 0;
    /// Memory of freed blocks that waits, filled with 0xDD, until its whole strip is dead. Above it the blocks freed in
    /// the oldest strips are trapped by themselves. Under reuse::quarantined: what waits before it is used again.
    std::size_t quarantine_bytes = std::size_t{256} << 20;
    /// Records of retired strips kept, so that a late double free or fault is still explained.
    std::size_t retired_record_bytes = std::size_t{8} << 20;
    /// Canary bytes kept next to a block, on the side without guard, up to a page. 0: 256; a page under
    /// dead_unit::trap_at_once, which pays for a whole page anyway.
    std::size_t canary_bytes = 0;
    /// Blocks that fault from the moment they are freed, under any policy. Over an upstream whose pages cannot be
    /// trapped `statistics::untrapped_blocks` counts them. If they are chosen by size or number, no slot is used again
    /// before all of the address space was. By default the first thousand, where there is a `fault_handler`, unless the
    /// policy uses slots again.
    trap_selection trap_freed{};
};

/// How the blocks of an end-of-page resource are guarded. Counts since construction.
struct guard_statistics {
    std::uint64_t marker_blocks = 0;     ///< guarded by a marker (Linux 6.13 and later), which costs no mapping
    std::uint64_t protected_blocks = 0;  ///< guarded by mprotect, which costs up to two mappings each
    std::uint64_t unguarded_blocks = 0;  ///< not guarded: canaries on both sides only
    std::uint64_t moved_strips = 0;      ///< dead strips whose pages went on to fresh addresses
    /// False: guards do not work here, which was found out by their effect: some emulators, and some kernels, answer
    /// success and guard nothing. Then all blocks have canaries on both sides, and no access faults.
    bool work = true;
};

namespace detail {

struct fence_core;

/// The part of a policy that shapes the code of an end-of-page resource. Everything else is data.
struct fence_shape {
    threading threads = threading::synchronized;
    bool checks = true;
    bool traces = true;

    friend constexpr bool operator==(const fence_shape&, const fence_shape&) = default;
};

[[nodiscard]] constexpr fence_shape fence_shape_of(const policy& p) noexcept {
    // Without checks nobody would be told about a second thread.
    const bool alone = p.threads == threading::unchecked || (p.threads == threading::single_checked && !p.checks);
    return {.threads = alone ? threading::unchecked : p.threads,
            .checks = p.checks,
            .traces = p.alloc_frames != 0 || p.free_frames != 0};
}

/// Entry points of the compiled shapes. Defined and explicitly instantiated in the library for every valid shape.
template <fence_shape S>
struct fence_engine {
    static void* allocate(fence_core* core, std::size_t bytes, std::size_t alignment);
    static void deallocate(fence_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept;
};

}  // namespace detail

/// What every instantiation shares: everything but the calls themselves.
class end_of_page_resource_base : public std::pmr::memory_resource {
public:
    end_of_page_resource_base(const end_of_page_resource_base&) = delete;
    end_of_page_resource_base& operator=(const end_of_page_resource_base&) = delete;

    /// Null: the pages are the operating system's.
    [[nodiscard]] std::pmr::memory_resource* upstream_resource() const noexcept;
    [[nodiscard]] std::string_view name() const noexcept;
    /// Counters. A unit is a strip, or a block too large for one. `upstream_bytes` is the address space in units,
    /// retired ones included; `resident_bytes` what live and waiting blocks take, whole pages.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] guard_statistics guards() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported so far.
    [[nodiscard]] bool ok() const noexcept;
    /// Effects: verifies canaries of live blocks and fills of freed ones that are not trapped yet, reporting what is
    ///   damaged. Returns: the number of damaged blocks. Preconditions: no other thread uses the resource meanwhile.
    std::size_t check() noexcept;
    /// Effects: reports blocks live now, grouped by call path, as error_kind::leak. Returns: how many.
    std::size_t report_leaks() noexcept;
    /// Effects: under threading::single_checked, makes the next thread to use the resource its owner: to hand it over.
    ///   Otherwise none. Preconditions: nobody uses the resource meanwhile, and what was done before happens before
    ///   what the next thread does.
    void rebind_thread() noexcept;

protected:
    /// \p use_upstream: \p upstream was given, and is an error if null.
    end_of_page_resource_base(std::pmr::memory_resource* upstream, bool use_upstream, const end_of_page_options& o,
                              const policy& p);
    /// Checks what is left, reports blocks still live as leaks, gives everything back.
    ~end_of_page_resource_base() override;

    // Reached only by calls to a resource that was destroyed: reports destroyed_resource to the default handler.
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::fence_core* core_;
};

/// An end-of-page resource under a policy.
///
/// Without upstream, or over a `page_resource`, blocks are guarded, by the first of these that the system allows: guard
/// markers; mprotect, within a budget well below the system's limit of mappings; canaries on both sides. Over any other
/// upstream there are canaries only, as its memory is not ours to protect, and dead units go back to it once they
/// exceed `quarantine_bytes`, or when it refuses a request, the oldest first. It is called without any lock held, so it
/// and its handlers may use this resource. `guards()` tells how many blocks went unguarded, and so do the reports about
/// such.
///
/// Faults: the first byte behind a block (before it, with placement::after_guard), less the bytes up to the alignment,
/// which are canaries; any byte of a zero-size block; freed blocks: at once if they are of more than a page, chosen by
/// the options' trap_freed (by default the first thousand), or under dead_unit::trap_at_once; others when their strip
/// is dead or `quarantine_bytes` are exceeded, and until then a read of them goes unnoticed. Under dead_unit::keep only
/// those chosen. Canaries are verified on free, by check() and at destruction; waiting freed bytes, and the canaries
/// around them, before they are trapped. `fill` writes 0xAA into fresh blocks: all of those up to a page, the first and
/// the last 1024 bytes of larger ones. With `checks` off blocks are guarded and nothing is reported. The policy's
/// `guard_bytes` turns canaries on or off, `fill` the fills; `protect_metadata` does not apply. `exact_alignment` moves
/// a block away from its guard page by up to its alignment, where that page would align it to more; the bytes between
/// are canaries. It does not apply with placement::after_guard, where each block begins a page.
///
/// `freed`: under reuse::quarantined a freed block of at most a page waits, filled, until `quarantine_bytes` wait; then
/// it is verified and its slot, guard and serial number are used again. Under reuse::immediate that is at once. Such
/// blocks are not trapped, and their memory stays with the resource, as much as was ever in use: no page fault and no
/// system call is left, so that many live blocks of random lifetimes cost a fraction. Does not apply to larger blocks,
/// under dead_unit::trap_at_once, and over an upstream that is no `page_resource`.
///
/// Throws: std::bad_alloc only. Thread safety: as the policy says.
/// Reports: double_free, invalid_free, interior_free, null_free, wrong_resource, destroyed_resource, size_mismatch,
/// alignment_mismatch, overrun, underrun, write_after_free, foreign_thread, bad_alignment, limit_exceeded, leak,
/// upstream_null, upstream_misaligned, upstream_overlap, null_upstream, cycle.
template <policy P>
class basic_end_of_page_resource final : public end_of_page_resource_base {
    static_assert(is_valid(P), "frames or guard bytes out of range, or traces, guards or fills without checks");
    using engine = detail::fence_engine<detail::fence_shape_of(P)>;

public:
    /// No upstream: pages of the operating system.
    basic_end_of_page_resource() : basic_end_of_page_resource(end_of_page_options{}) {}
    explicit basic_end_of_page_resource(detail::empty_braces /*options*/) : basic_end_of_page_resource() {}
    explicit basic_end_of_page_resource(const end_of_page_options& o)
        : end_of_page_resource_base(nullptr, false, o, P) {}
    explicit basic_end_of_page_resource(detail::upstream_argument upstream, const end_of_page_options& o = {})
        : end_of_page_resource_base(upstream.get(), true, o, P) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        return engine::allocate(core_, bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        engine::deallocate(core_, p, bytes, alignment);
    }
};

using end_of_page_resource = basic_end_of_page_resource<default_policy>;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
