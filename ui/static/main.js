// The entry of every page. Pages are complete without it.
import './live.js';
import './log.js';
import './keys.js';
import { tick } from './time.js';

tick();
setInterval(tick, 1000);
