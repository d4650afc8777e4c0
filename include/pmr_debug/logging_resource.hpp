#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Writes a line for every call.
///
/// \verbatim
///   "index": allocate 0x7f5b1c000010, 64 bytes, alignment 8, thread 1
///   "index": deallocate 0x7f5b1c000010, 64 bytes, alignment 8, thread 1
///   "index": allocate failed, 1099511627776 bytes, alignment 8, thread 1
/// \endverbatim
///
/// \code
///   pmr_debug::logging_resource log({.name = "index"});  // to standard error
///   std::pmr::vector<int> v({1, 2, 3}, &log);
/// \endcode

#include <pmr_debug/detail/construction.hpp>
#include <pmr_debug/detail/pass_through.hpp>

#include <cstddef>
#include <memory_resource>
#include <string_view>

namespace pmr_debug {

struct logging_options {
    std::string_view name{};  ///< begins each line; copied; beyond 63 bytes, or from a NUL on, cut: then … ends it
    report_handler* handler = nullptr;  ///< null: the default handler
    text_sink sink = nullptr;  ///< gets each line whole, in one call, its newline included; null: standard error
    void* context = nullptr;   ///< handed to the sink
};

/// An allocation is logged after the upstream answered, a deallocation before the upstream gets it, so that in the log,
/// too, an address is freed before it is handed out again. Nothing is allocated for it; the sink must not use the
/// resource, and is called by several threads at once if they use it at once.
/// Throws: std::bad_alloc, and what the upstream throws. Thread safety: synchronized.
/// Reports: null_free, bad_alignment, upstream_null, upstream_misaligned, null_upstream, cycle, destroyed_resource.
class logging_resource final : public detail::pass_through_base {
public:
    /// Upstream: std::pmr::new_delete_resource().
    logging_resource() : logging_resource(logging_options{}) {}
    explicit logging_resource(detail::empty_braces /*options*/) : logging_resource() {}
    explicit logging_resource(const logging_options& o);
    explicit logging_resource(detail::upstream_argument upstream, const logging_options& o = {});

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
