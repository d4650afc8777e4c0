#include "os/quiet.hpp"

#include <pthread.h>

namespace pmr_debug::os {

// Two stores to the thread's control block; refused only for arguments that do not exist.
no_cancellation::no_cancellation() noexcept : before_(PTHREAD_CANCEL_ENABLE) {
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_);
}

no_cancellation::~no_cancellation() {
    int ours = 0;
    pthread_setcancelstate(before_, &ours);
}

}  // namespace pmr_debug::os
