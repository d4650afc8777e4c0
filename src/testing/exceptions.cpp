#include <pmr_debug/detail/exceptions.hpp>

#include <new>

namespace pmr_debug::detail {

call_end end_of_call(void (*call)(void*), void* context) noexcept {
    try {
        call(context);
        return call_end::returned;
    } catch (const std::bad_alloc&) {
        return call_end::threw_bad_alloc;
    } catch (...) {
        return call_end::threw_something_else;
    }
}

bool throws_bad_alloc(void (*call)(void*), void* context) {
    try {
        call(context);
        return false;
    } catch (const std::bad_alloc&) {
        return true;
    }
}

void throw_bad_alloc() {
    throw std::bad_alloc();
}

}  // namespace pmr_debug::detail
