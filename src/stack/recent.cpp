#include "stack/recent.hpp"

#include "os/guarded.hpp"
#include "os/thread.hpp"
#include "os/thread_end.hpp"
#include "os/virtual_memory.hpp"

#include <atomic>

namespace pmr_debug::stack::detail {

namespace {

struct recent_tables {
    std::atomic<recent_traces*> by_index[os::max_thread_index]{};
};
constinit os::guarded<recent_tables> tables;
const os::guard_pages tables_guards(tables);
constexpr auto& by_index = tables->by_index;

}  // namespace

constinit thread_local recent_traces* current_recent = nullptr;

recent_traces* make_recent() noexcept {
    const std::uint32_t index = os::this_thread().index;
    if (os::is_shared_index(index)) {
        return nullptr;
    }
    recent_traces* r = by_index[index].load(std::memory_order_acquire);
    if (r == nullptr) {
        // Straight from the system, as capture takes no lock. Zeroed: no frame lies at address 0.
        r = static_cast<recent_traces*>(os::map(sizeof(recent_traces), alignof(recent_traces)));
        by_index[index].store(r, std::memory_order_release);
    } else {
        r->clear();  // an ended thread's, with frames of its stack
    }
    current_recent = r;
    os::detail::on_index_released.store([]() noexcept { current_recent = nullptr; }, std::memory_order_release);
    return r;
}

void give_back_recent() noexcept {
    current_recent = nullptr;
    for (std::atomic<recent_traces*>& place : by_index) {
        if (recent_traces* const r = place.exchange(nullptr, std::memory_order_acq_rel); r != nullptr) {
            os::unmap(r, sizeof(recent_traces));
        }
    }
}

}  // namespace pmr_debug::stack::detail
