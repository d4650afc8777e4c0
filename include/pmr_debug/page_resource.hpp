#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// The operating system's pages as a memory resource: the bottom of a chain.
///
/// \verbatim
///   allocate(10 000, 4096)                     guard(p + 8192, 4096)
///   +--------+--------+--------+               +--------+--------+########+
///   |  page  |  page  |  page  |               |  page  |  page  | faults |
///   +--------+--------+--------+               +--------+--------+########+
///   ^ p, aligned; whole pages, zeroed
/// \endverbatim
///
/// \code
///   pmr_debug::page_resource pages;
///   void* p = pages.allocate(10'000, 4096);
///   pages.guard(static_cast<std::byte*>(p) + 8192, 4096);  // the third page now faults
///   pages.deallocate(p, 10'000, 4096);
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

namespace detail {
struct page_core;
}

/// What a `page_resource` holds from the operating system, bytes.
struct page_statistics {
    std::uint64_t mapped_bytes = 0;     ///< address space of live blocks, whole pages
    std::uint64_t resident_bytes = 0;   ///< of those, bytes in memory right now (asks the operating system)
    std::uint64_t guarded_bytes = 0;    ///< of those, made inaccessible by guard()
    std::uint64_t unguarded_bytes = 0;  ///< guard() requests the operating system refused, cumulative
    /// Freed, but the operating system refuses to unmap it (it may, at its mapping limit). The contents are given back,
    /// the addresses stay taken; every later deallocation tries again.
    std::uint64_t stuck_bytes = 0;
};

/// Whole pages from the operating system, for any size and any power-of-two alignment. Fresh memory is zeroed.
/// Every block is known by address, with 16 frames of who allocated and who freed it: a wrong size, alignment or
/// pointer on deallocate is reported and never unmaps anything else.
/// Throws: std::bad_alloc only. Thread safety: synchronized.
/// Reports: double_free, invalid_free, interior_free, null_free, wrong_resource, size_mismatch, alignment_mismatch,
/// bad_alignment, limit_exceeded, upstream_overlap (somebody unmapped a live block), destroyed_resource, leak.
class page_resource final : public std::pmr::memory_resource {
public:
    struct options {
        std::string_view name{};  ///< shown in reports; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
        report_handler* handler = nullptr;  ///< null: the default handler
        std::size_t limit_bytes = 0;        ///< most mapped bytes; 0: no limit
    };

    page_resource();
    explicit page_resource(detail::empty_braces /*options*/) : page_resource() {}
    /// Throws: std::bad_alloc if there is no private memory for its records.
    explicit page_resource(const options& o);
    page_resource(const page_resource&) = delete;
    page_resource& operator=(const page_resource&) = delete;
    /// Reports blocks still live as leaks and unmaps them.
    ~page_resource() override;

    /// Bytes of a page.
    [[nodiscard]] static std::size_t page_size() noexcept;

    /// Effects: gives the contents of the whole pages within [p, p + bytes) back to the operating system; they read as
    ///   zero afterwards. Returns: false if nothing was given back. Preconditions: within a live block.
    bool release(void* p, std::size_t bytes) noexcept;
    /// Effects: makes the whole pages within [p, p + bytes) fault on access; their contents are lost. Uses guard
    ///   markers (MADV_GUARD_INSTALL), else mprotect. Returns: false if there is no whole page, or if the operating
    ///   system refuses, which counts as unguarded. Preconditions: within a live block, none of it guarded.
    ///   Deallocating the block undoes its guards.
    bool guard(void* p, std::size_t bytes) noexcept;
    /// Effects: undoes every guard() that lies whole within [p, p + bytes); the pages read as zero. Returns: false if
    ///   one was refused, which stays. Preconditions: within a live block.
    bool unguard(void* p, std::size_t bytes) noexcept;
    /// Effects: resizes the block at \p p in place; pages added read as zero. Returns: false, block unchanged, if the
    ///   addresses behind are taken, the limit is in the way, or \p p or \p old_bytes is wrong (reported as by
    ///   deallocate). On success the block must be deallocated with \p new_bytes.
    bool resize(void* p, std::size_t old_bytes, std::size_t new_bytes) noexcept;

    /// Null: the pages are the operating system's.
    [[nodiscard]] static constexpr std::pmr::memory_resource* upstream_resource() noexcept { return nullptr; }
    [[nodiscard]] std::string_view name() const noexcept;
    [[nodiscard]] page_statistics pages() const noexcept;
    /// Counters; asks the operating system for `resident_bytes`, which takes time with many blocks.
    [[nodiscard]] statistics stats() const noexcept;
    [[nodiscard]] error_counts errors() const noexcept;
    /// True if no error of any kind was reported.
    [[nodiscard]] bool ok() const noexcept;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    detail::page_core* core_;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
