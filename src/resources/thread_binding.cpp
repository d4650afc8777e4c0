#include "resources/thread_binding.hpp"

#include "resources/block_reports.hpp"

namespace pmr_debug::detail {

namespace {

constexpr unsigned first_use_frames = 16;

}  // namespace

void thread_binding::bind_or_report(std::uint32_t me, trace_id traced, error_tally& errors,
                                    const metadata::resource_record* self, const void* p, std::size_t bytes,
                                    std::size_t alignment) noexcept {
    std::uint32_t bound = 0;
    if (thread_.compare_exchange_strong(bound, me, std::memory_order_relaxed)) {
        last_use_.store(traced != trace_id::none ? traced : capture_trace(first_use_frames), std::memory_order_release);
        return;
    }
    report r = call_report(self, error_kind::foreign_thread, p, bytes, alignment);
    r.has_given = bytes != 0 || alignment != 0;
    r.other_thread = bound;
    r.other = last_use_.load(std::memory_order_acquire);
    raise(errors, r);
}

}  // namespace pmr_debug::detail
